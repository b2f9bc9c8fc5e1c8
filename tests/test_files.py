"""Errors of a disk and of a place that takes no files, for people; those of bugs stay as they are.

Places are below a test's own folder.
"""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from axcore.errors import BudgetError, BundleError
from axcore.files import check_writable_file, explained_full_disk, write_atomic

from .bundles import largest_file


def written(path: Path) -> None:
    with explained_full_disk(path.parent):
        write_atomic(path, "text")


def opened(path: Path) -> None:
    with explained_full_disk(path.parent):
        path.write_text("text")


early_and_late = pytest.mark.parametrize("write", [check_writable_file, written])


@early_and_late
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes/table.csv", "notes is no folder"),
        ("notes/a/b/table.csv", "notes is no folder"),
        ("nowhere/table.csv", "nowhere is no folder"),
        ("taken", "cannot write .*taken: Is a directory"),
    ],
)
def test_a_place_that_takes_no_file(
    tmp_path: Path, write: Callable[[Path], None], name: str, reason: str
) -> None:
    """Below a file or a link to nothing, or a folder's own name; nothing is left behind."""
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=reason) as caught:
        write(tmp_path / name)
    assert "choose a place" in caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "notes").read_text() == "mine"


@early_and_late
def test_a_working_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    """Files cannot be made in it, though it is there for the process."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(BundleError, match="no file can be made in"):
        write(Path("table.csv"))


def test_what_is_no_file(tmp_path: Path) -> None:
    """A socket cannot be opened for writing; its name is told."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(BundleError, match=r"cannot write .*/s: No such device"):
            opened(tmp_path / "s")


def test_a_file_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    """The folders above it are; what is there stays. Oracle: the folder."""
    check_writable_file(tmp_path / "a" / "b" / "table.csv")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]
    (tmp_path / "old.csv").write_text("old")
    check_writable_file(tmp_path / "old.csv")
    assert (tmp_path / "old.csv").read_text() == "old"


def test_errors_of_bugs_stay(tmp_path: Path) -> None:
    """A missing file of ours, or a folder of ours that is there already: no fault of the place."""
    with pytest.raises(FileNotFoundError), explained_full_disk(tmp_path):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(FileExistsError), explained_full_disk(tmp_path.parent):
        tmp_path.mkdir()
    (tmp_path / "elsewhere" / "config.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError), explained_full_disk(tmp_path):
        (tmp_path / "elsewhere" / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("kept", "remedy"),
    [("", "again"), ("finished steps", "again; finished steps are kept")],
)
def test_a_full_disk_is_that_of_the_copy(tmp_path: Path, kept: str, remedy: str) -> None:
    """The file that grew is named, not the one read; what is kept is said where something is.

    A limit on the size of files stands in for a full disk.
    """
    (tmp_path / "source").write_bytes(bytes(5000))
    with (
        largest_file(1000),
        pytest.raises(BudgetError, match=f"cannot write {tmp_path}/copy: File too") as caught,
        explained_full_disk(tmp_path, kept),
    ):
        shutil.copyfile(tmp_path / "source", tmp_path / "copy")
    assert caught.value.hint == f"make room and run the same command {remedy}"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
