"""Files that appear whole, checksums, and errors of a disk and of a place that takes no files.

Places are below a test's own folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore import files
from axcore.errors import BudgetError, BundleError
from axcore.files import (
    Checksums,
    Content,
    appearing,
    check_writable_file,
    explained_full_disk,
    lock,
    write_atomic,
)

from .bundles import contents, largest_file


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


# What appears whole ------------------------------------------------------------------------------


def write(path: Path, text: str, kind: str) -> None:
    """Write a file, or a folder of two."""
    if kind == "folder":
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "b").write_text(text)
        path = path / "a"
    path.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


kinds = pytest.mark.parametrize("kind", ["file", "folder"])


@kinds
@pytest.mark.parametrize("before", ["", "old"])
def test_it_is_there_when_all_is_written(tmp_path: Path, kind: str, before: str) -> None:
    """Until then the old one is. Oracle: a path that is written in place."""
    path, expected = tmp_path / "above" / "it", tmp_path / "expected"
    write(expected, "new", kind)
    if before:
        path.parent.mkdir()
        write(path, before, kind)
        shutil.copytree(path.parent, tmp_path / "earlier")
    with appearing(path) as partial:
        write(partial, "new", kind)
        assert not before or contents(path) == contents(tmp_path / "earlier" / "it")
        assert path.exists() == bool(before)
    assert names(path.parent) == ["it"]
    assert contents(path) == contents(expected)
    assert path.is_dir() or path.read_text() == expected.read_text()


@kinds
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", ["", "old"])
def test_what_fails_leaves_no_trace(
    tmp_path: Path, kind: str, error: type[BaseException], before: str
) -> None:
    """Not even half of it. Oracle: the names and the bytes before."""
    path = tmp_path / "it"
    if before:
        write(path, before, kind)
    earlier = contents(tmp_path)
    with pytest.raises(error), appearing(path) as partial:  # noqa: PT012
        write(partial, "new", kind)
        raise error
    assert contents(tmp_path) == earlier
    assert names(tmp_path) == (["it"] if before else [])


@pytest.mark.parametrize(("old", "new"), [("file", "folder"), ("folder", "file")])
def test_a_file_and_a_folder_never_replace_each_other(tmp_path: Path, old: str, new: str) -> None:
    """What is in the way may be somebody's. Oracle: the bytes before."""
    write(tmp_path / "it", "theirs", old)
    before = contents(tmp_path)
    with pytest.raises(OSError, match="directory"), appearing(tmp_path / "it") as partial:
        write(partial, "ours", new)
    assert contents(tmp_path) == before


DYING = """
import os, signal, sys
from pathlib import Path
from axcore.files import appearing

path, phase = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def last(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
if phase == "replaced":
    Path.rename = last
with appearing(path) as partial:
    partial.mkdir()
    (partial / "a").write_text("new")
    if phase == "partial":
        os.kill(os.getpid(), signal.SIGKILL)
    if phase == "running":
        print("running", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("phase", ["partial", "replaced"])
def test_what_a_killed_process_left_is_cleared(tmp_path: Path, phase: str) -> None:
    """And a folder that it had moved away is back, for the next one may fail as well.

    Oracle: the bytes before; a stranger's file of a similar name.
    """
    path = tmp_path / "it"
    write(path, "old", "folder")
    (tmp_path / ".axcore.othersss.partial").write_text("theirs")
    before = contents(tmp_path)
    died = subprocess.run([sys.executable, "-c", DYING, str(path), phase], check=False)
    assert died.returncode == -signal.SIGKILL
    assert contents(tmp_path) != before
    with pytest.raises(ValueError, match="again"), appearing(path):
        raise ValueError("again")
    assert contents(tmp_path) == before


def test_what_a_running_process_writes_is_left_to_it(tmp_path: Path) -> None:
    """Both end well; the last one counts. Oracle: what each wrote."""
    path = tmp_path / "it"
    with subprocess.Popen(
        [sys.executable, "-c", DYING, str(path), "running"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "running\n"
        with appearing(path) as partial:
            write(partial, "ours", "folder")
        assert (path / "deep" / "b").read_text() == "ours"
        other.communicate("")
    assert other.returncode == 0
    assert contents(path).keys() == {"a"}
    assert (path / "a").read_text() == "new"
    assert names(tmp_path) == ["it"]


def test_two_writers_of_one_process_id(tmp_path: Path) -> None:
    """As processes of two containers have; neither takes the other's for a leftover.

    Oracle: what each wrote, the last one in place.
    """
    path = tmp_path / "it"
    with appearing(path) as first:
        first.write_text("first")
        with appearing(path) as second:
            second.write_text("second")
            assert first.read_text() == "first"
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert names(tmp_path) == ["it"]


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    """And ends with its descriptor. Oracle: the file that a link leads to."""
    (tmp_path / "link").symlink_to("made")
    with pytest.raises(OSError, match="symbolic links"):
        lock(tmp_path / "link")
    assert names(tmp_path) == ["link"]
    held = lock(tmp_path / "it")
    assert held is not None
    assert lock(tmp_path / "it") is None
    os.close(held)
    again = lock(tmp_path / "it")
    assert again is not None
    os.close(again)


# Checksums ---------------------------------------------------------------------------------------


def test_a_file_is_read_once_until_it_looks_changed(tmp_path: Path, hashed: list[str]) -> None:
    """By the next process as well, and wherever the bundle is moved. Oracle: the reads."""
    bundle = tmp_path / "bundle"
    record, path, outside = bundle / ".axcore" / "sums.json", bundle / "a", tmp_path / "weights"
    bundle.mkdir()
    path.write_text("one")
    outside.write_text("many")
    for _ in range(2):
        checksums = Checksums(record)
        assert checksums.of_all([path, outside])[path] == checksums.of(path)
        assert checksums.holds(path, checksums.of(path))
        checksums.save()
    assert sorted(hashed) == ["a", "weights"]
    bundle.rename(tmp_path / "moved")
    path = tmp_path / "moved" / "a"
    checksums = Checksums(tmp_path / "moved" / ".axcore" / "sums.json")
    known = checksums.of(path)
    assert len(hashed) == 2
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert not checksums.holds(path, known)
    assert not checksums.holds(path.with_name("gone"), known)
    assert not checksums.holds(path, Content(4, known.sha256))
    assert hashed[2:] == ["a"]


STEPS = st.sampled_from(["write", "move", "rename folder", "remove", "save", "again"])
NAMES = st.sampled_from(["x/a", "x/b", "y/a", "y/b"])


@given(st.lists(st.tuples(STEPS, NAMES, NAMES, st.binary(max_size=3)), max_size=12))
def test_what_is_known_is_what_is_there(steps: list[tuple[str, str, str, bytes]]) -> None:
    """Whatever was written, moved, removed and noted in between. Oracle: a file read anew."""
    with tempfile.TemporaryDirectory() as name:
        root, count = Path(name), 0
        checksums = Checksums(root / ".axcore" / "sums.json")
        for what, source, target, content in steps:
            here, there, count = root / source, root / target, count + 1
            here.parent.mkdir(exist_ok=True)
            there.parent.mkdir(exist_ok=True)
            if what == "write":
                here.write_bytes(content)
                os.utime(here, ns=(count, count))  # two writes within a tick of the clock differ
            elif what == "move" and here.exists():
                checksums.move(here, there)
            elif what == "rename folder" and here.parent != there.parent:
                shutil.rmtree(there.parent)
                here.parent.rename(there.parent)
                checksums.rename(here.parent, there.parent)
            elif what == "remove":
                here.unlink(missing_ok=True)
            elif what == "save":
                checksums.save()
            elif what == "again":
                checksums.save()
                checksums = Checksums(root / ".axcore" / "sums.json")
            for path in root.glob("?/?"):
                raw = path.read_bytes()
                assert checksums.of(path) == Content(len(raw), files.sha256(path))


def test_names_follow_a_rename(tmp_path: Path, hashed: list[str]) -> None:
    """Of a file and of a folder, and no other name that begins alike. Oracle: the reads."""
    checksums = Checksums(tmp_path / "sums.json")
    for name in ("step/deep/a", "step2/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
        checksums.of(tmp_path / name)
    (tmp_path / "step").rename(tmp_path / "done")
    checksums.rename(tmp_path / "step", tmp_path / "done")
    checksums.move(tmp_path / "done/deep/a", tmp_path / "a")
    assert checksums.of(tmp_path / "a").size == len("step/deep/a")
    assert checksums.of(tmp_path / "step2/a").size == len("step2/a")
    assert hashed == ["a", "a"]


@given(
    st.binary(max_size=20)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.just("a"), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_damaged_record_only_costs_time(record: bytes) -> None:
    """Whatever it holds. Oracle: the file itself."""
    with tempfile.TemporaryDirectory() as name:
        path, sums = Path(name) / "a", Path(name) / "sums.json"
        path.write_text("text")
        sums.write_bytes(record)
        checksums = Checksums(sums)
        expected = Content(4, files.sha256(path))
        assert checksums.of(path) == expected
        checksums.save()
        noted: dict[str, Any] = json.loads(sums.read_text())
        assert noted["a"][4] == expected.sha256
