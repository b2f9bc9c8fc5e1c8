"""Bad input gets one clear error, and what was there before stays as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from PIL import Image

from ..bundles import IMAGES, MODEL, STEM, Axcore, Outcome, change_json, command_line, contents

FIRST = "model-00001-of-00004.safetensors"
Damage = Callable[[Path], object]


def assert_explained(outcome: Outcome, *evidence: str, code: int = 1) -> None:
    """Exit code, silence on stdout, and on stderr fact and evidence, then the remedy."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    fact, separator, remedy = outcome.err.partition("\n\nhint: ")
    assert "error: " in fact
    assert separator, outcome.err
    assert remedy.strip()
    for text in evidence:
        assert text in outcome.err


# Checkpoints -------------------------------------------------------------------------------------


def config(**changes: Any) -> Damage:
    return lambda folder: change_json(folder / "config.json", **changes)


def truncated(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-100])


CHECKPOINTS: dict[str, tuple[Damage, list[str]]] = {
    "missing shard": (lambda folder: (folder / FIRST).unlink(), [FIRST, "missing"]),
    "truncated shard": (truncated, [FIRST, "incomplete"]),
    "config of another width": (
        config(hidden_size=128),
        ["of another shape", "model.embed_tokens.weight is [512, 64] instead of [512, 128]"],
    ),
    "config that is no JSON": (
        lambda folder: (folder / "config.json").write_text("{]"),
        ["`config.json` is not a JSON object", "config.json"],
    ),
    "config without the tower": (
        config(vision_config=None),
        ["does not describe a `qwen2.5-vl-3b`", "vision_config"],
    ),
    "config with words for numbers": (config(hidden_size="wide"), ["config.json"]),
    "config with no heads": (config(num_attention_heads=0), ["does not describe a `qwen2.5-vl"]),
    "config without architectures": (config(architectures=None), ["architecture"]),
    "config with a number for architectures": (config(architectures=7), ["architecture"]),
    "architecture of another model": (
        config(architectures=["LlamaForCausalLM"]),
        ["LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration"],
    ),
}


@pytest.mark.parametrize(("damage", "evidence"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_is_wrong(
    axcore: Axcore, own_checkpoint: Path, bundle: Path, damage: Damage, evidence: list[str]
) -> None:
    """Each kind of damage is named with its evidence. Oracle: the damage done."""
    damage(own_checkpoint)
    before = contents(bundle)
    assert_explained(axcore(*command_line(own_checkpoint, bundle)), *evidence)
    assert contents(bundle) == before


def test_nothing_is_tried_on_an_architecture_nobody_knows(
    axcore: Axcore, own_checkpoint: Path, tmp_path: Path
) -> None:
    """A folder alone must be recognised. Oracle: what its config says, what is installed, and
    where to read on.
    """
    change_json(
        own_checkpoint / "config.json",
        architectures=["FooForConditionalGeneration"],
        model_type="foo_vl",
    )
    outcome = axcore("convert", own_checkpoint, "-o", tmp_path / "out")
    assert_explained(
        outcome, "FooForConditionalGeneration", "foo_vl", "installed:", "qwen25vl", "entry point",
        "docs/plugins.md",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()
    change_json(own_checkpoint / "config.json", architectures=7)
    assert_explained(axcore("plan", own_checkpoint), "`architectures` is 7", "config.json")


# Requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "code", "evidence"),
    [
        (
            "--height 450 --width 450",
            1,
            ["450x450", "multiples of 28", "nearest that fit: 448x448 or 476x476"],
        ),
        ("--height 0", 1, ["0x448", "multiples of 28"]),
        ("--prefill-len 200", 1, ["256 tokens each", "prefill_len 200", "--prefill-len 320"]),
        ("--kv-cache-len 255", 1, ["255 cache slots"]),
        ("--images nowhere/at-all", 1, ["nowhere/at-all"]),
        ("--split 99", 2, ["99 parts", "--split between 1 and 6"]),
        ("--toolchain gcc", 2, ["no toolchain `gcc`", "pulsar2"]),
        ("--opset 15", 2, ["opset 15", "16 to 20"]),
        ("--embedding-format gguf", 2, ["gguf", "npy"]),
        ("--weights random-tiny", 2, ["--weights", "--checkpoint"]),
    ],
)
def test_a_request_that_cannot_be_met(
    axcore: Axcore, checkpoint: Path, tmp_path: Path, asked: str, code: int, evidence: list[str]
) -> None:
    """Said before any work, so no folder appears; a wrong request exits with 2.

    Oracle: the request.
    """
    outcome = axcore(*command_line(checkpoint, tmp_path / "out"), *asked.split())
    assert_explained(outcome, *evidence, code=code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "evidence"),
    [
        ("--chip NOPE", ["--chip NOPE", "AX650, M76H"]),
        ("--npu-mode NPU4", ["AX650 has no NPU mode `NPU4`", "NPU1, NPU2, NPU3"]),
        ("--chip AX620E --npu-mode NPU3", ["AX620E has no NPU mode `NPU3`", "NPU1, NPU2"]),
        (
            "--toolchain onnx --chip NOPE",
            ["toolchain `onnx` has no option --chip", "--weight-type"],
        ),
        ("--toolchain ascend --chip AX650", ["`ascend` has no option --chip", "--soc-version"]),
        ("--toolchain ascend --soc-version 310P3", ["`310P3` is no soc-version", "npu-smi"]),
        ("--toolchain abacus --frame glass", ["no frame is made of glass", "wood or brass"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_target_that_cannot_be(
    axcore: Axcore,
    abacus: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    asked: str,
    evidence: list[str],
) -> None:
    """Refused before any work: no checkpoint is fabricated, and none is read: this one is none.

    Oracle: the targets of each toolchain, that of a third party among them, and the folder.
    """
    monkeypatch.setenv("AXCORE_CACHE", str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    for source in ("--weights=random-tiny", f"--checkpoint={tmp_path}"):
        outcome = axcore(command, MODEL, source, "-o", tmp_path / "out", *asked.split())
        assert_explained(outcome, *evidence, code=2)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_folder_that_is_not_there(axcore: Axcore, tmp_path: Path) -> None:
    """No download is tried of what is plainly a path. Oracle: its name."""
    missing = tmp_path / "nowhere"
    assert_explained(axcore("plan", MODEL, "--checkpoint", missing), str(missing))


@pytest.mark.parametrize(
    "asked",
    ["--dtype int8", "--split many", "--split 0", "--weights random", "--source disc", "--nope"],
)
def test_an_option_without_sense(axcore: Axcore, tmp_path: Path, asked: str) -> None:
    """Exit code 2 and the option named, as every command line does. Oracle: the option."""
    outcome = axcore("convert", MODEL, "-o", tmp_path / "out", *asked.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert asked.split()[-1] in outcome.err
    assert not (tmp_path / "out").exists()


# Images and output folders -----------------------------------------------------------------------


def test_images_that_would_spoil_a_calibration(
    axcore: Axcore, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """The bad one is named with the reason, the good one is not. Oracle: how it was made."""
    (tmp_path / "images").mkdir()
    shutil.copy(IMAGES / "rocket.jpg", tmp_path / "images")
    Image.new("RGB", (64, 64), (10, 200, 30)).save(tmp_path / "images/odd.png")
    before = contents(bundle)
    command = ["convert", MODEL, "--checkpoint", checkpoint, "-o", bundle]
    outcome = axcore(*command, "--images", tmp_path / "images")
    assert_explained(outcome, "1 of 2 images", "odd.png", "one colour")
    assert "rocket" not in outcome.err
    assert contents(bundle) == before


def test_a_folder_holding_another_model(axcore: Axcore, bundle: Path) -> None:
    """A 7B model into a 3B bundle. Oracle: both ids, and the bytes."""
    before = contents(bundle)
    outcome = axcore("convert", "qwen2.5-vl-7b", "--weights", "random-tiny", "-o", bundle)
    assert_explained(outcome, "holds a bundle of `qwen2.5-vl-3b`, not of `qwen2.5-vl-7b`")
    assert contents(bundle) == before


# Room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["convert", "plan"])
def test_a_disk_that_is_too_small(
    axcore: Axcore, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Said before any work. `shutil.disk_usage` is a stand-in for such a disk."""
    usage = SimpleNamespace(total=10**9, used=10**9 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    arguments = [command, *command_line(checkpoint, tmp_path / "out")[1:]]
    assert_explained(axcore(*arguments), "GB", "disk", "make room")
    assert not (tmp_path / "out").exists()


def test_memory_that_is_too_small(
    axcore: Axcore, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before any work. `psutil.virtual_memory` is a stand-in for such a machine."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**8))
    outcome = axcore(*command_line(checkpoint, tmp_path / "out"))
    assert_explained(outcome, "memory", "0.1 GB are available", "--no-verify")
    assert not (tmp_path / "out").exists()


# Bundles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["build", "verify", "lint", "chat"])
@pytest.mark.parametrize("place", ["absent", "empty", "broken", "later"])
def test_what_is_no_bundle(axcore: Axcore, tmp_path: Path, command: str, place: str) -> None:
    """No folder, no manifest, a broken one, one of a later axcore. Oracle: its name."""
    folder = tmp_path / place
    if place != "absent":
        folder.mkdir()
    if place == "broken":
        (folder / "axcore.json").write_text('{"schema": 1')
    if place == "later":
        (folder / "axcore.json").write_text('{"schema": 99}')
    assert_explained(axcore(command, folder), place)


@pytest.mark.parametrize("command", ["build", "verify", "lint"])
@pytest.mark.parametrize(
    ("changes", "evidence"),
    [({"files": None}, "files: missing"), ({"build": {"model": "foo"}}, "build.checkpoint")],
    ids=["lacking", "of another form"],
)
def test_a_manifest_without_sense(
    axcore: Axcore, bundle: Path, command: str, changes: dict[str, Any], evidence: str
) -> None:
    """A field is missing, or is not what it should be. Oracle: its name."""
    change_json(bundle / "axcore.json", **changes)
    assert_explained(axcore(command, bundle), "axcore.json", evidence)


@pytest.mark.parametrize(
    "name", [f"{STEM}.onnx", f"{STEM}.onnx.data", "hidden_states.tar", f"{STEM}.pulsar2.json"]
)
def test_a_file_that_was_changed_is_not_built(
    axcore: Axcore, bundle: Path, tmp_path: Path, name: str
) -> None:
    """The tool is not even asked what it is, but for a configuration, which is there to be edited.

    A script stands in for it. Oracle: the file changed.
    """
    tool, started = tmp_path / "pulsar2", tmp_path / "started"
    tool.write_text(f"#!/bin/sh\ntouch '{started}'\n")
    tool.chmod(0o755)
    with (bundle / name).open("r+b") as file:
        file.write(b"\xff")
    outcome = axcore("build", bundle, "--pulsar2", tool)
    editable = name.endswith(".json")
    assert started.exists() == editable
    assert (f"{name} has another content" in outcome.err) != editable
    if not editable:
        assert_explained(outcome, "`axcore convert` again")


def test_a_checkpoint_that_is_gone_cannot_be_compared(
    axcore: Axcore, bundle: Path, own_checkpoint: Path
) -> None:
    """`verify` needs the weights a bundle was made from. Oracle: the folder."""
    assert axcore(*command_line(own_checkpoint, bundle)).code == 0
    shutil.rmtree(own_checkpoint)
    assert_explained(axcore("verify", bundle), str(own_checkpoint))


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x07"])
def test_a_file_that_is_no_graph(axcore: Axcore, tmp_path: Path, content: bytes) -> None:
    """`lint` says so. Oracle: its name."""
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    assert_explained(axcore("lint", path), "odd.onnx")


def test_a_chip_that_is_not_known(axcore: Axcore, converted: Path) -> None:
    """`lint` lists those it knows. Oracle: the default chip among them."""
    outcome = axcore("lint", converted, "--chip", "AX1")
    assert_explained(outcome, "AX1", "AX650", code=2)
