"""Files that others give to an evaluation: refused by what they are, before memory is spent."""

from __future__ import annotations

import gzip
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from axcore.errors import AxcoreError, CheckpointError, UsageError
from axcore.evaluate import read_predictions
from axcore.evaluate.agreement import tokens_of
from axcore.evaluate.clip_files import read_clip, read_merges
from axcore.evaluate.fidelity import load_features
from axcore.evaluate.measurement import Measurement
from axcore.evaluate.plots import plot_throughput

from . import toy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READERS = {
    "predictions": read_predictions,
    "features": load_features,
    "merges": read_merges,
    "tokenizer": tokens_of,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("place", ["pipe", "device", "folder", "missing"])
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, read: Callable[[Path], object], place: str
) -> None:
    """A pipe was waited for for ever, a device read until memory was gone. Oracle: an answer."""
    if place == "pipe":
        os.mkfifo(tmp_path / place)
    elif place == "device":
        (tmp_path / place).symlink_to("/dev/zero")
    elif place == "folder":
        (tmp_path / place).mkdir()
    with pytest.raises(AxcoreError) as caught:
        read(tmp_path / place)
    assert place in caught.value.message


def npy(shape: str, descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("content", "evidence"),
    [
        (npy("(1000000, 1000000)"), "promises 4000000000000 bytes, it holds 0"),
        (npy("(-1, -4)") + bytes(16), "cannot be read as features"),
        (npy("(4,)") + bytes(17), "promises 16 bytes, it holds 17"),
        (npy("(1,)", "|O") + bytes(8), "pickled and never loaded"),
        (npy("(" * 5000), "cannot be read as features"),
        (b"\x93NUMPY\x03\x00" + bytes(8), "version 3.0"),
        (b"PK\x03\x04", "an archive of several arrays"),
    ],
)
def test_features_are_of_the_size_that_they_say(
    tmp_path: Path, content: bytes, evidence: str
) -> None:
    """Numpy makes the array first. Oracle: the header that was written."""
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UsageError, match=evidence):
        load_features(tmp_path / "a.npy")


def test_merges_that_unpack_without_end_are_refused(tmp_path: Path) -> None:
    """17 MB of zeros in a few kB."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(17 << 20)))
    with pytest.raises(UsageError, match="more than 16 MiB"):
        read_merges(tmp_path / "a.gz")


@pytest.mark.parametrize(
    "views",
    [
        {"a": torch.zeros(1, dtype=torch.float16).expand(1 << 40)},
        {"a": torch.zeros(1 << 10).expand(1 << 20, 1 << 10)},
        {"a": torch.zeros(2, 2).to_sparse()},
    ],
    ids=["one number", "rows", "sparse"],
)
def test_numbers_that_are_not_in_the_file_are_refused(
    tmp_path: Path, views: dict[str, torch.Tensor]
) -> None:
    """A view repeats one number 10^12 times, and converting would store each."""
    torch.save(views, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="numbers are not in the file"):
        read_clip(tmp_path)


@pytest.mark.parametrize(
    ("described", "evidence"),
    [
        ({"preprocess_cfg": []}, "preprocess_cfg"),
        ({"preprocess_cfg": {"mean": "black"}}, "preprocess_cfg.mean"),
        ({"preprocess_cfg": {"mean": [0.5]}}, "not those of RGB"),
        ({"preprocess_cfg": {"std": [0, 0, 0]}}, "not those of RGB"),
        ({"model_cfg": {"quick_gelu": "yes"}}, "model_cfg.quick_gelu"),
        ({"model_cfg": {"vision_cfg": {"head_width": "wide"}}}, "head_width"),
        ({"model_cfg": {"text_cfg": {"heads": 1.5}}}, "heads"),
    ],
)
def test_a_description_of_other_types_is_refused(
    tmp_path: Path, described: dict[str, Any], evidence: str
) -> None:
    """The message names the path in the file."""
    toy.write(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=evidence):
        read_clip(tmp_path)


def test_a_title_is_drawn_as_it_is(tmp_path: Path) -> None:
    """A folder may be called like a formula, or by no characters at all. Oracle: a plot is there.

    Before, hours of measuring ended in a traceback of matplotlib.
    """
    pytest.importorskip("matplotlib")
    one = Measurement(1, 8, 2, 0, 1.0, (1.0,), 2.0, None, None)
    for number, title in enumerate((r"$\frac{$", "$x^$", "a\x1b[31m\udcff\x00b\n")):
        plot_throughput([one], tmp_path / f"{number}.png", title)
        assert (tmp_path / f"{number}.png").is_file()


def test_features_of_any_order_come_back(tmp_path: Path) -> None:
    """Columns first, as some tools write. Oracle: the array."""
    array = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(load_features(tmp_path / "a.npy"), array)
