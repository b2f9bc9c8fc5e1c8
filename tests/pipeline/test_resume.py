"""A second run does what has changed and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import axcore
from axcore import BundleError, VerificationError
from axcore.testing import Recorder

from ..bundles import (
    EMBEDDING,
    IMAGES,
    MODEL,
    STEM,
    change_tensors,
    command_line,
    contents,
    convert,
    environment,
    raised,
    shard_of,
    steps_done,
)

HEAVY = {"torch", "transformers", "onnx", "onnxruntime"}
BLOCK = "visual.blocks.2.attn.proj.weight"


def redone(checkpoint: Path, out: Path, **changes: object) -> set[str]:
    """Convert again and return the steps that did work."""
    progress = Recorder()
    convert(checkpoint, out, progress, **changes)
    return steps_done(progress)


def touch(folder: Path) -> None:
    """Give every file another time."""
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))


# Nothing has changed -----------------------------------------------------------------------------


def test_an_unchanged_run_loads_nothing_heavy(bundle: Path, checkpoint: Path) -> None:
    """The command in a process of its own says so. Oracle: `sys.modules` and the bytes."""
    before = contents(bundle)
    code = (
        "import sys; from axcore.cli import main\n"
        f"sys.argv = {['axcore', *command_line(checkpoint, bundle)]!r}\n"
        "try: main()\n"
        f"finally: print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert f"{bundle} is up to date" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert contents(bundle) == before


def test_a_touched_checkpoint_costs_no_work(bundle: Path, own_checkpoint: Path) -> None:
    """The same content at another path and of another time: only the weights are looked at again.

    Oracle: the steps, and the bytes.
    """
    before = contents(bundle)
    touch(own_checkpoint)
    # build.sh names the checkpoint.
    assert redone(own_checkpoint, bundle) == {"language-model-weights", "toolchain"}
    after = contents(bundle)
    assert {n for n in after if after[n] != before[n]} == {"axcore.json", "build.sh"}
    touch(own_checkpoint)
    os.utime(own_checkpoint / "config.json")
    assert redone(own_checkpoint, bundle) == {"language-model-weights"}


def test_a_bundle_elsewhere_is_still_current(bundle: Path, checkpoint: Path) -> None:
    """Moved with its state, it is known again. Oracle: what is said."""
    moved = bundle.rename(bundle.with_name("moved"))
    progress = Recorder()
    convert(checkpoint, moved, progress)
    assert progress.said == [f"{moved} is up to date"]


# Something has changed ---------------------------------------------------------------------------


def test_one_vision_weight(bundle: Path, own_checkpoint: Path) -> None:
    """Export and what looks at it again, the embedding not. Oracle: the steps, and the bytes."""
    convert(own_checkpoint, bundle)
    before = contents(bundle)
    change_tensors(shard_of(own_checkpoint, BLOCK), raised(BLOCK))
    again = {"language-model-weights", "export-vision", "lint-vision", "verify-vision"}
    assert redone(own_checkpoint, bundle) == again
    after = contents(bundle)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"axcore.json", f"{STEM}.onnx.data"}


def test_the_embedding_alone(bundle: Path, own_checkpoint: Path) -> None:
    """Only its files are made anew. Oracle: the steps."""
    convert(own_checkpoint, bundle)
    change_tensors(shard_of(own_checkpoint, EMBEDDING), raised(EMBEDDING))
    assert redone(own_checkpoint, bundle) == {"language-model-weights", "embedding"}


@pytest.mark.parametrize(
    ("changes", "there", "back"),
    [
        ({"chip": "AX620E"}, {"lint-vision", "toolchain"}, {"lint-vision", "toolchain"}),
        ({"npu_mode": "NPU1"}, {"toolchain"}, {"toolchain"}),
        ({"toolchain": "onnx"}, {"toolchain"}, {"lint-vision", "toolchain"}),
        ({"lint": False}, set(), {"lint-vision"}),
    ],
)
def test_another_target(
    bundle: Path, checkpoint: Path, changes: dict[str, Any], there: set[str], back: set[str]
) -> None:
    """Only lint and configuration know of it. Oracle: the steps, and the graphs' bytes."""
    before = contents(bundle)
    assert redone(checkpoint, bundle, **changes) == there
    after = contents(bundle)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"axcore.json", "build.sh", f"{STEM}.pulsar2.json"}
    assert redone(checkpoint, bundle) == back
    assert contents(bundle) == before


def test_a_chip_without_table(bundle: Path, checkpoint: Path) -> None:
    """Said once, and nothing is claimed. Oracle: the documented chip, and its configuration."""
    progress = Recorder()
    convert(checkpoint, bundle, progress, chip="AX8860", npu_mode="NPU4")
    assert steps_done(progress) == {"toolchain"}
    said = "no operator table is published for AX8860: graphs are not checked"
    assert progress.said.count(said) == 1
    manifest = json.loads((bundle / "axcore.json").read_text())
    assert manifest["components"][0]["findings"] is None
    config = json.loads((bundle / f"{STEM}.pulsar2.json").read_text())
    assert (config["target_hardware"], config["npu_mode"]) == ("AX8860", "NPU4")


def test_a_length_of_the_language_model(bundle: Path, checkpoint: Path) -> None:
    """``--prefill-len`` changes build.sh and nothing else. Oracle: the steps, and the text."""
    assert redone(checkpoint, bundle, prefill_len=384) == {"toolchain"}
    assert "--prefill_len 384" in (bundle / "build.sh").read_text()


def test_new_images(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Mirrored photographs: calibration and verification. Fewer samples leave no old ones.

    Oracle: the steps, and the names.
    """
    for name in ("cat.jpg", "rocket.jpg"):
        with Image.open(IMAGES / name) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / name, quality=95)
    progress = Recorder()
    images = [tmp_path / "cat.jpg", tmp_path / "rocket.jpg"]
    convert(checkpoint, bundle, progress, images=images)
    # The configuration says how many samples there are.
    assert steps_done(progress) == {"verify-vision", f"calibrate-{STEM}", "toolchain"}
    assert any("too few" in warning for warning in progress.warned)
    kept = {path.name for path in (bundle / "calib_vision_data").iterdir()}
    assert kept == {"data_0.png", "data_1.png"}


def test_a_size_is_another_graph(bundle: Path, checkpoint: Path) -> None:
    """Everything that sees images is done again. Oracle: the steps."""
    done = redone(checkpoint, bundle, height=112, width=112)
    assert {"export-vision", "verify-vision", f"calibrate-{STEM}"} <= done
    assert not {"embedding", "assets"} & done


# The bundle was damaged --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step", "damage"),
    [
        (f"{STEM}.onnx.data", "export-vision", "flipped"),
        (f"{STEM}.pulsar2.json", "toolchain", "deleted"),
        ("build.sh", "toolchain", "flipped"),
        ("hidden_states.tar", f"calibrate-{STEM}", "flipped"),
        ("calib_vision_data/data_3.png", f"calibrate-{STEM}", "deleted"),
        (f"{EMBEDDING}.bfloat16.bin", "embedding", "flipped"),
        ("config.json", "assets", "deleted"),
    ],
)
def test_a_damaged_file_is_restored(
    bundle: Path, checkpoint: Path, name: str, step: str, damage: str
) -> None:
    """Deleted, or one bit flipped in the middle. Oracle: the bytes before."""
    before, path = contents(bundle), bundle / name
    if damage == "deleted":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert redone(checkpoint, bundle) == {step}
    after = contents(bundle)
    after.pop(f"{name}.orig", None)
    assert after == before


def test_a_lost_manifest_is_written_again(bundle: Path, checkpoint: Path) -> None:
    """Without it a folder is no bundle; no step is repeated. Oracle: the bytes before."""
    before = contents(bundle)
    (bundle / "axcore.json").unlink()
    with pytest.raises(BundleError, match="no finished bundle"):
        axcore.verify(bundle)
    assert redone(checkpoint, bundle) == set()
    assert contents(bundle) == before


@pytest.mark.parametrize(
    "text", ["", "{", '{"files": {"../escaped": {"size": 8, "sha256": ""}}}', "[]", "\x00"]
)
def test_a_broken_manifest_is_replaced(bundle: Path, checkpoint: Path, text: str) -> None:
    """Whatever it holds; a name leading out of the folder removes nothing there.

    Oracle: the bytes before.
    """
    before = contents(bundle)
    escaped = bundle.parent / "escaped"
    escaped.write_text("precious")
    (bundle / "axcore.json").write_text(text)
    convert(checkpoint, bundle)
    assert contents(bundle) == before
    assert escaped.read_text() == "precious"


def test_an_edited_script_is_kept_beside_the_new_one(bundle: Path, checkpoint: Path) -> None:
    """Somebody's work is not lost. Oracle: their text."""
    (bundle / "build.sh").write_text("# mine\n")
    progress = Recorder()
    convert(checkpoint, bundle, progress, prefill_len=384)
    assert (bundle / "build.sh.orig").read_text() == "# mine\n"
    assert any("build.sh.orig" in warning for warning in progress.warned)


def test_without_its_state_a_bundle_is_made_again(bundle: Path, checkpoint: Path) -> None:
    """The folder .axcore is gone. Oracle: the bytes before."""
    before = contents(bundle)
    shutil.rmtree(bundle / ".axcore")
    assert "export-vision" in redone(checkpoint, bundle)
    assert contents(bundle) == before


# Verification after the fact ---------------------------------------------------------------------


def test_verify_alone_repeats_what_the_manifest_says(bundle: Path) -> None:
    """On the same image. Oracle: the metrics of the conversion."""
    (result,) = axcore.verify(bundle, images=[IMAGES])
    listed = json.loads((bundle / "axcore.json").read_text())["components"][0]["verification"]
    assert result.metrics() == listed


def test_verify_names_the_first_stage_that_drifts(bundle: Path, own_checkpoint: Path) -> None:
    """The checkpoint's block 2 changes after the conversion. Oracle: the tensor changed."""
    convert(own_checkpoint, bundle)
    change_tensors(shard_of(own_checkpoint, BLOCK), raised(BLOCK))

    with pytest.raises(VerificationError, match=r"first: .*`blocks\.2`") as caught:
        axcore.verify(bundle)
    assert caught.value.hint


def test_verify_wants_the_graph_as_it_was_written(bundle: Path) -> None:
    """A changed graph is told before anything is run. Oracle: the file changed."""
    (bundle / f"{STEM}.onnx.data").write_bytes(b"")
    with pytest.raises(BundleError, match=rf"{STEM}\.onnx\.data has 0 bytes"):
        axcore.verify(bundle)


def test_a_model_named_by_another_id_is_another_bundle(bundle: Path, checkpoint: Path) -> None:
    """The folder keeps what it holds. Oracle: the bytes before."""
    before = contents(bundle)
    with pytest.raises(BundleError, match=rf"holds a bundle of `{MODEL}`, not of `qwen2.5-vl-7b`"):
        convert(checkpoint, bundle, model="qwen2.5-vl-7b")
    assert contents(bundle) == before
