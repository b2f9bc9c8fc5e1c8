"""Arrays in place of images: found by content, typed and bounded when read."""

from __future__ import annotations

import os
import tarfile
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from axcore import Component, ImageError, Port
from axcore.calibration import (
    SourceArray,
    check_arrays,
    embedded_images,
    find_data,
    find_images,
    image_samples,
)
from axcore.limits import ARRAY_BYTES
from axcore.testing import Recorder

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Sample

EAR = Component("ear", "ear", (), (Port("mel", (1, 4)),), (), media="array", images_per_sample=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten arrays in a folder below, one of them under another suffix; and an image."""
    (tmp_path / "below").mkdir()
    for number in range(10):
        np.save(tmp_path / "below" / f"s{number}.npy", np.full(4, number, np.float32))
    (tmp_path / "below" / "s9.npy").rename(tmp_path / "below" / "s9.features")
    (tmp_path / "photo.jpg").write_bytes(embedded_images()[0].read_bytes())
    return tmp_path


def values(arrays: Any) -> list[float]:
    found = []
    for array in arrays:
        with array.loaded() as read:
            found.append(float(read[0]))
    return found


def test_arrays_are_found_beside_images(folder: Path, tmp_path_factory: Any) -> None:
    """In folders, TAR and ZIP, or by name, in natural order. Oracle: what was saved."""
    found = find_data([folder])
    assert values(found.arrays) == list(range(10))
    assert [one.name for one in found.images] == [str(folder / "photo.jpg")]
    assert [one.name for one in find_images([folder])] == [str(folder / "photo.jpg")]
    packed = tmp_path_factory.mktemp("packed")
    with tarfile.open(packed / "it.tar", "w") as tar, tarfile.open(packed / "it.tgz", "w:gz") as gz:
        tar.add(folder, "x")
        gz.add(folder, "x")
    with zipfile.ZipFile(packed / "it.zip", "w") as archive:
        for path in folder.rglob("s*.*"):
            archive.write(path, path.name)
    for name in ("it.tar", "it.tgz", "it.zip"):
        assert values(find_data([packed / name]).arrays) == list(range(10))
    assert values(find_data([folder / "below" / "s3.npy"]).arrays) == [3]
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match="nor an array"):
        find_data([folder / "empty"])


def test_samples_are_made_of_arrays_in_order(folder: Path) -> None:
    """As many as the component takes at once. Oracle: what was saved."""

    def make(arrays: Any) -> list[Sample]:
        return [{"mel": np.concatenate(arrays)}]

    made = image_samples(EAR, make, find_data([folder]).arrays)
    expected = [[n] * 4 + [n + 1] * 4 for n in range(0, 10, 2)]
    assert [sample["mel"].tolist() for sample in made] == expected
    with pytest.raises(ImageError, match="takes 2 arrays, but only 1 were given"):
        next(image_samples(EAR, make, find_data([folder]).arrays[:1]))


def test_unfit_arrays_are_named_together(folder: Path) -> None:
    """Which, and why; nothing is unpickled. Oracle: what was saved, and what a trap would make."""

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (folder / "ran",)

    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    np.save(folder / "a.npy", np.zeros(4))
    np.save(folder / "b.npy", np.array([1, np.inf], np.float32))
    np.save(folder / "c.npy", np.zeros(0, np.float32))
    np.save(folder / "d.npy", np.array(Trap()), allow_pickle=True)
    (folder / "e.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(huge).to_bytes(2, "little") + huge)
    (folder / "f.npy").write_bytes(b"\x93NUMPY\x09\x00")
    with (folder / "g.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00")
        file.truncate(ARRAY_BYTES + 1)
    with pytest.raises(ImageError) as raised:
        check_arrays(find_data([folder]).arrays, EAR, Recorder())
    lines = raised.value.message.splitlines()
    assert "7 of 17 arrays are unfit" in lines[0]
    reasons = ("float64", "infinities", "empty", "pickled", "promises", "version 9", "at most")
    for line, name, reason in zip(lines[1:], "abcdefg", reasons, strict=True):
        assert f"{name}.npy" in line
        assert reason in line
    assert not (folder / "ran").exists()


def test_no_arrays_are_an_error_and_few_a_warning() -> None:
    """Oracle: the component's name, and its minimum."""
    recorder = Recorder()
    with pytest.raises(ImageError, match="no arrays to calibrate `ear`"):
        check_arrays([], EAR, recorder)
    check_arrays([SourceArray("x", _saved)], EAR, recorder)
    assert "give at least 4" in recorder.warned[0]


def _saved() -> bytes:
    file = BytesIO()
    np.save(file, np.ones(4, np.float32))
    return file.getvalue()
