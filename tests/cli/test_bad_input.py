"""Bad input gets one clear error, and what was there before stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from PIL import Image

from axcore.checkpoint.shards import INDEX

from ..bundles import (
    IMAGES,
    MODEL,
    STEM,
    Axcore,
    Outcome,
    change_header,
    change_json,
    change_tensors,
    command_line,
    contents,
    shard_of,
)

if TYPE_CHECKING:
    from torch import Tensor

NORM = "visual.merger.ln_q.weight"
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


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: change_header(shard_of(folder, NORM), change)


def tensors(key: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    return lambda folder: change_tensors(shard_of(folder, key), change)


def index(change: Callable[[dict[str, str]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return damage


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def resized(change: int) -> Damage:
    """Cut bytes off the first shard, or append zeros."""

    def damage(folder: Path) -> None:
        raw = (folder / FIRST).read_bytes()
        (folder / FIRST).write_bytes(raw[:change] if change < 0 else raw + bytes(change))

    return damage


def absurd_length(folder: Path) -> None:
    raw = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes((1 << 62).to_bytes(8, "little") + raw[8:])


def overlap(entries: dict[str, Any]) -> None:
    """Let two tensors share their bytes."""
    entries["visual.twin.weight"] = entries[NORM]


def outside(entries: dict[str, Any]) -> None:
    entries[NORM]["data_offsets"] = [10**9, 10**9 + 128]


def added(key: str) -> Damage:
    """Add a tensor to the last vision shard and to the index."""

    def add(held: dict[str, Tensor]) -> None:
        held[key] = held[NORM].clone()

    return both(tensors(NORM, add), index(lambda places: places.update({key: places[NORM]})))


def only_pickles(folder: Path) -> None:
    for path in [folder / INDEX, *folder.glob("*.safetensors")]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")


INVALID = "not a valid safetensors file"
CHECKPOINTS: dict[str, tuple[Damage, list[str]]] = {
    "missing shard": (lambda folder: (folder / FIRST).unlink(), [FIRST, "missing"]),
    "truncated shard": (resized(-100), [FIRST, "incomplete"]),
    "oversized shard": (resized(100), [FIRST, INVALID]),
    "empty shard": (lambda folder: (folder / FIRST).write_bytes(b""), [FIRST, "0 bytes"]),
    "overlapping tensors": (header(overlap), [INVALID]),
    "tensor outside the file": (header(outside), [INVALID]),
    "absurd header length": (absurd_length, [FIRST, INVALID]),
    "header lying about dtype": (
        header(lambda entries: entries[NORM].update(dtype="F32")),
        [INVALID],
    ),
    "header lying about shape": (
        header(lambda entries: entries[NORM].update(shape=[8, 8])),
        [NORM, "[8, 8] instead of [64]"],
    ),
    "integer weights": (
        header(lambda entries: entries[NORM].update(dtype="I16")),
        [NORM, "int16"],
    ),
    "index leaving the folder": (
        index(lambda places: places.update({NORM: "../../secret.safetensors"})),
        ["../../secret.safetensors", "not a safetensors file beside it"],
    ),
    "index with an absolute name": (
        index(lambda places: places.update({NORM: "/etc/passwd"})),
        ["/etc/passwd"],
    ),
    "index that is no JSON": (
        lambda folder: (folder / INDEX).write_text("{"),
        [INDEX, "fetch the file again"],
    ),
    "config of another width": (
        config(hidden_size=128),
        ["of another shape", "model.embed_tokens.weight is [512, 64] instead of [512, 128]"],
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no `config.json`"]),
    "config that is no JSON": (
        lambda folder: (folder / "config.json").write_text("{]"),
        ["`config.json` is not a JSON object", "config.json"],
    ),
    "config that is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        ["is not a JSON object: it holds list"],
    ),
    "config without the tower": (
        config(vision_config=None),
        ["does not describe a `qwen2.5-vl-3b`", "vision_config"],
    ),
    "config with words for numbers": (config(hidden_size="wide"), ["config.json"]),
    "config with no heads": (config(num_attention_heads=0), ["does not describe a `qwen2.5-vl"]),
    "config without architectures": (config(architectures=None), ["architecture"]),
    "config with a text for architectures": (config(architectures=7), ["architecture"]),
    "architecture of another model": (
        config(architectures=["LlamaForCausalLM"]),
        ["LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration"],
    ),
    "an unused tensor": (added("visual.surplus.weight"), ["1 unused", "visual.surplus.weight"]),
    "a missing tensor": (
        both(tensors(NORM, lambda held: held.pop(NORM)), index(lambda places: places.pop(NORM))),
        ["1 missing", NORM],
    ),
    "index promising what a shard lacks": (
        tensors(NORM, lambda held: held.pop(NORM)),
        [NORM, "lacks"],
    ),
    "pickles only": (only_pickles, ["pytorch_model.bin", "pickles", "never opened"]),
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
    """A folder alone must be recognised. Oracle: what is installed, and where to read on."""
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


def test_a_folder_alone_with_a_number_for_architectures(
    axcore: Axcore, own_checkpoint: Path
) -> None:
    """It cannot be recognised, and the field is quoted. Oracle: the number."""
    change_json(own_checkpoint / "config.json", architectures=7)
    assert_explained(axcore("plan", own_checkpoint), "`architectures` is 7", "config.json")


# Requests ----------------------------------------------------------------------------------------

REQUESTS: dict[str, tuple[list[str], list[str]]] = {
    "size that does not fit": (
        ["--height", "450", "--width", "450"],
        ["450x450", "multiples of 28", "nearest that fit: 448x448 or 476x476"],
    ),
    "size below any": (["--height", "0"], ["0x448", "multiples of 28"]),
    "negative size": (["--height", "-28"], ["-28x448"]),
    "no room for an image": (
        ["--prefill-len", "128"],
        ["256 tokens each", "prefill_len 128", "--prefill-len 320"],
    ),
    "cache shorter than a prompt": (["--kv-cache-len", "255"], ["255 cache slots"]),
    "missing images": (["--images", "nowhere/at-all"], ["nowhere/at-all"]),
    "too many parts": (["--split", "99"], ["99 parts", "--split between 1 and 6"]),
    "unknown task": (["--task", "audio"], ["no task `audio`", "image, video"]),
    "unknown toolchain": (["--toolchain", "gcc"], ["no toolchain `gcc`", "pulsar2"]),
    "opset not offered": (["--opset", "15"], ["opset 15", "16 to 20"]),
    "unknown embedding format": (["--embedding-format", "gguf"], ["gguf", "npy"]),
    "weights beside a checkpoint": (["--weights", "random-tiny"], ["--weights", "--checkpoint"]),
}
WRONG = {
    "too many parts", "unknown task", "unknown toolchain",
    "opset not offered", "unknown embedding format", "weights beside a checkpoint",
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_cannot_be_met(
    axcore: Axcore, checkpoint: Path, converted: Path, tmp_path: Path, name: str
) -> None:
    """Said before any work, so no folder appears; a wrong request exits with 2.

    Oracle: the request.
    """
    asked, evidence = REQUESTS[name]
    out = tmp_path / "out"
    outcome = axcore(*command_line(checkpoint, out), *asked)
    assert_explained(outcome, *evidence, code=2 if name in WRONG else 1)
    assert not out.exists()


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
    ],
)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_target_that_cannot_be(
    axcore: Axcore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    asked: str,
    evidence: list[str],
) -> None:
    """Refused before any work: not even a checkpoint is fabricated.

    Oracle: the targets of each toolchain, and the folder.
    """
    monkeypatch.setenv("AXCORE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    outcome = axcore(command, MODEL, "--weights", "random-tiny", "-o", out, *asked.split())
    assert_explained(outcome, *evidence, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["convert", "plan", "show"])
def test_a_model_that_is_misspelt(axcore: Axcore, command: str) -> None:
    """The nearest is suggested. Oracle: one letter."""
    outcome = axcore(command, "qwen2.5-vl-3v")
    assert_explained(outcome, "qwen2.5-vl-3v", "did you mean `qwen2.5-vl-3b`?")


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


# Images ----------------------------------------------------------------------------------------


def solid(path: Path) -> None:
    Image.new("RGB", (64, 64), (10, 200, 30)).save(path)


def noise(path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def cut(path: Path) -> None:
    Image.open(IMAGES / "cat.jpg").save(path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("make", "reason"),
    [(solid, "one colour"), (noise, "noise"), (cut, "cannot be read")],
)
def test_images_that_would_spoil_a_calibration(
    axcore: Axcore,
    bundle: Path,
    checkpoint: Path,
    tmp_path: Path,
    make: Callable[[Path], None],
    reason: str,
) -> None:
    """Each is named with the reason, and the good ones are not. Oracle: how it was made."""
    (tmp_path / "images").mkdir()
    shutil.copy(IMAGES / "rocket.jpg", tmp_path / "images")
    make(tmp_path / "images/odd.png")
    before = contents(bundle)
    command = ["convert", MODEL, "--checkpoint", checkpoint, "-o", bundle]
    outcome = axcore(*command, "--images", tmp_path / "images")
    assert_explained(outcome, "1 of 2 images", "odd.png", reason)
    assert "rocket" not in outcome.err
    assert contents(bundle) == before


def test_an_image_given_twice(
    axcore: Axcore, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Both names are told. Oracle: a copy under another name and format."""
    Image.open(IMAGES / "cat.jpg").save(tmp_path / "again.png")
    before = contents(bundle)
    outcome = axcore(*command_line(checkpoint, bundle), "--images", tmp_path / "again.png")
    assert_explained(outcome, "again.png", "cat.jpg", "same pixels")
    assert contents(bundle) == before


def test_a_folder_without_images(axcore: Axcore, checkpoint: Path, tmp_path: Path) -> None:
    """Nothing in it is an image. Oracle: its name."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/cat.jpg").write_text("a cat")
    out = tmp_path / "out"
    outcome = axcore(
        "convert", MODEL, "--checkpoint", checkpoint, "-o", out, "--images", tmp_path / "texts"
    )
    assert_explained(outcome, "texts", "no JPEG, PNG or WebP image")
    assert not out.exists()


# Output folders ----------------------------------------------------------------------------------


def test_a_folder_holding_something_else(axcore: Axcore, checkpoint: Path, tmp_path: Path) -> None:
    """It is named and left alone. Oracle: the file in it."""
    (tmp_path / "thesis.tex").write_text("years of work")
    outcome = axcore(*command_line(checkpoint, tmp_path))
    assert_explained(outcome, "holds something else", "thesis.tex")
    assert contents(tmp_path).keys() == {"thesis.tex"}


def test_a_folder_holding_another_model(axcore: Axcore, bundle: Path) -> None:
    """A 7B model into a 3B bundle. Oracle: both ids, and the bytes."""
    before = contents(bundle)
    outcome = axcore("convert", "qwen2.5-vl-7b", "--weights", "random-tiny", "-o", bundle)
    assert_explained(outcome, "holds a bundle of `qwen2.5-vl-3b`, not of `qwen2.5-vl-7b`")
    assert contents(bundle) == before


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_way(axcore: Axcore, checkpoint: Path, tmp_path: Path, below: str) -> None:
    """A file where the folder, or one above it, should be. Oracle: its name and content."""
    (tmp_path / "taken").write_text("mine")
    outcome = axcore(*command_line(checkpoint, tmp_path / "taken" / below))
    assert_explained(outcome, "taken")
    assert (tmp_path / "taken").read_text() == "mine"


# Room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["convert", "plan"])
def test_a_disk_that_is_too_small(
    axcore: Axcore,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
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


@pytest.mark.parametrize("command", ["build", "verify", "lint"])
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
    [({"files": None}, "lacks files"), ({"build": {"model": "foo"}}, "build.checkpoint")],
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
