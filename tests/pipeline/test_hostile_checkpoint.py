"""What a checkpoint holds beside what it should never reaches a bundle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from axcore import CheckpointError
from axcore.checkpoint import Checkpoint
from axcore.testing import Recorder

from ..bundles import STEM, convert, steps_done

NAN = b"\xc0\x7f"  # in bfloat16


def overwrite(folder: Path, key: str, value: bytes, element: int = 0) -> None:
    """Overwrite one value of a tensor, and set the file's time of writing back."""
    with Checkpoint.open(folder) as checkpoint:
        info = checkpoint.info(key)
    times = info.file.stat()
    with info.file.open("r+b") as file:
        file.seek(info.offset + element * len(value))
        file.write(value)
    os.utime(info.file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "key",
    [
        "visual.merger.mlp.2.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
    ],
)
def test_nan_anywhere_is_found_by_convert(own_checkpoint: Path, key: str, tmp_path: Path) -> None:
    """Tower, embedding or language model, before a bundle is there. Oracle: the value written."""
    overwrite(own_checkpoint, key, NAN, element=5)
    with pytest.raises(CheckpointError) as caught:
        convert(own_checkpoint, tmp_path / "out", verify=False)
    assert f"`{key}` has values that are no numbers: 1 NaN" in caught.value.message
    assert not (tmp_path / "out" / "axcore.json").exists()


def test_strangers_files_stay_behind_and_replaced_weights_are_noticed(
    own_checkpoint: Path, tmp_path: Path
) -> None:
    """Oracle: the toolchain's own configuration, the file outside, and the weights written."""
    secret, out = tmp_path / "secret", tmp_path / "out"
    secret.write_text("secret")
    (own_checkpoint / "notes.txt").symlink_to(secret)
    (own_checkpoint / f"{STEM}.pulsar2.json").write_text('{"hostile": 1}')

    convert(own_checkpoint, out, verify=False)
    assert not (out / "notes.txt").exists()
    configuration = (out / f"{STEM}.pulsar2.json").read_text()
    assert "hostile" not in configuration

    again = Recorder()
    convert(own_checkpoint, out, again, verify=False)
    assert again.said == [f"{out} is up to date"]
    assert (out / f"{STEM}.pulsar2.json").read_text() == configuration

    overwrite(own_checkpoint, "model.layers.0.mlp.up_proj.weight", b"\x80\x3f")
    changed = Recorder()
    convert(own_checkpoint, out, changed, verify=False)
    assert "language-model-weights" in steps_done(changed)
    overwrite(own_checkpoint, "model.layers.0.mlp.up_proj.weight", NAN)
    with pytest.raises(CheckpointError, match=r"`model.layers.0.mlp.up_proj.weight`.*1 NaN"):
        convert(own_checkpoint, out, verify=False)
    assert (out / "axcore.json").exists()
