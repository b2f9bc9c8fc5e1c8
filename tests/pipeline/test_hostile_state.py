"""A state folder that came from a stranger: nothing outside the bundle is touched.

Every forged bundle lies beside a canary, a folder that must stay as it is.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore.bundle import CHECKSUMS, MANIFEST
from axcore.errors import BundleError, ContractError
from axcore.files import Checksums, Content, appearing, sha256
from axcore.foreign import check_name, inside, own_folder
from axcore.step import STATE, Step, builds, published
from axcore.workspace import Workspace, digest

CONTENT = Content(4, "1" * 64)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that must survive the test, in a folder to which nothing may be added."""
    folder = tmp_path / "canary"
    (folder / "deep").mkdir(parents=True)
    (folder / "precious").write_text("mine")
    yield folder / "precious"
    assert (folder / "precious").read_text() == "mine"
    assert sorted(path.name for path in folder.rglob("*")) == ["deep", "precious"]


def convert(out: Path, name: str = "a", text: str = "1", file: str = "a.txt") -> Step:
    """Run a conversion of one step that writes one file."""
    workspace = Workspace(out, "toy")
    with workspace.locked():
        step = workspace.run(name, {"text": text}, lambda f: (f / file).write_text(text) and None)
        files = {name: vars(content) for name, content in step.files.items()}
        workspace.publish(json.dumps({"model": {"id": "toy"}, "files": files}))
        workspace.remember("i")
    return step


def forged(out: Path, series: str, name: str, file: str) -> Path:
    """Write a record of a step as a stranger might; `out` becomes a bundle."""
    path = out / STATE / series / name
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"name": path.name.partition(".")[0], "key": "0" * 64, "metrics": {}, "seconds": 1.0}
    content = {file: {"size": 4, "sha256": sha256(out.parent / "canary" / "precious")}}
    path.write_text(json.dumps({**record, "files": content}))
    return path


HOSTILE = ["../canary/precious", "{canary}", "a/../../canary/precious", "link/precious"]


@pytest.mark.parametrize("file", HOSTILE)
@pytest.mark.parametrize("folder", ["published", "publishing"])
@pytest.mark.parametrize("series", ["convert", "build-toy"])
def test_no_record_removes_a_file_elsewhere(
    tmp_path: Path, canary: Path, file: str, folder: str, series: str
) -> None:
    """Of a step that is gone, by a name that climbs, is absolute, or goes through a link."""
    out = tmp_path / "out"
    forged(out, series, f"{folder}/gone.json", file.format(canary=canary))
    (out / "link").symlink_to(canary.parent)
    for name in ("convert", "build-toy"):
        workspace = Workspace(out, "toy", name)
        with suppress(BundleError), workspace.locked():
            workspace.run("a", {}, lambda target: (target / "a.txt").write_text("1") and None)
            workspace.publish()
        (out / STATE / name / "published" / "a.json").unlink(missing_ok=True)
        (out / "a.txt").unlink(missing_ok=True)


@pytest.mark.parametrize("file", HOSTILE[:3])
def test_a_step_that_names_a_file_elsewhere_is_done_anew(
    tmp_path: Path, canary: Path, file: str
) -> None:
    """Its key is right, as anybody can work it out. Oracle: the file that the step makes."""
    out, key = tmp_path / "out", digest({"text": "1"})
    for folder in (f"steps/a/{key[:16]}/step.json", "published/a.json"):
        path = forged(out, "convert", folder, file.format(canary=canary))
        path.write_text(json.dumps({**json.loads(path.read_text()), "name": "a", "key": key}))
    staged = out / STATE / "convert" / "steps" / "a" / key[:16]
    (staged.parent / "precious").write_text("theirs")
    convert(out)
    assert (out / "a.txt").read_text() == "1"


@pytest.mark.parametrize("name", ["../../../../canary/precious", "", ".", "..", "a/b", "a\0b"])
def test_a_step_has_the_name_of_one_folder(tmp_path: Path, canary: Path, name: str) -> None:
    """In a record and in a program alike. Oracle: POSIX, where only / and NUL are special."""
    assert canary.is_file()
    with pytest.raises(ValueError, match="name"):
        Step(name, "", {}, {}, 0.0)
    workspace = Workspace(tmp_path / "out", "toy")
    with workspace.locked(), pytest.raises(ContractError, match="cannot have that name"):
        workspace.run(name, {}, lambda _: None)


@pytest.mark.parametrize(
    "damage",
    [
        {"files": {"a.txt": {"size": -1, "sha256": "1" * 64}}},
        {"files": {"a.txt": {"size": 1, "sha256": "1" * 63 + "g"}}},
        {"files": {"a.txt": {"size": True, "sha256": "1" * 64}}},
        {"files": {f"{STATE}/lock": {"size": 1, "sha256": "1" * 64}}},
        {"files": []},
        {"metrics": []},
        {"metrics": None},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": "1"},
        {"key": 1},
        {"name": None},
    ],
    ids=str,
)
def test_a_damaged_record_counts_as_absent(tmp_path: Path, damage: dict[str, Any]) -> None:
    """The work is done again. Oracle: a run over a record that is whole does none."""
    out = tmp_path / "out"
    assert not convert(out).reused
    assert convert(out).reused
    path = out / STATE / "convert" / "published" / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    assert Step.load(path) is None
    assert not convert(out).reused


@pytest.mark.parametrize(
    "place",
    ["", "convert", "convert/published", "convert/publishing", "lock", "owner", "checksums.json"],
)
def test_a_link_in_the_state_is_refused(tmp_path: Path, canary: Path, place: str) -> None:
    """Before anything is touched, with what to do. Oracle: the canary, and the bundle's names."""
    out = tmp_path / "out"
    convert(out)
    link = out / STATE / place if place else out / STATE
    if link.exists():
        link.rename(tmp_path / "aside")
    link.symlink_to(canary if place in ("lock", "owner", "checksums.json") else canary.parent)
    before = sorted(out.rglob("*"))
    with pytest.raises(BundleError, match="is a link; a state folder holds none") as caught:
        convert(out, text="2")
    assert "remove it" in caught.value.hint
    assert sorted(out.rglob("*")) == before


def test_a_link_in_the_bundle_is_not_written_through(tmp_path: Path, canary: Path) -> None:
    """A folder of the bundle that leads elsewhere. Oracle: the canary."""
    out = tmp_path / "out"
    convert(out)
    (out / "deep").symlink_to(canary.parent)
    workspace = Workspace(out, "toy")

    def make(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "precious").write_text("theirs")

    with workspace.locked():
        workspace.run("a", {"text": "2"}, make)
        with pytest.raises(BundleError, match="a link that leads out") as caught:
            workspace.publish()
    assert "remove the link" in caught.value.hint


def test_what_a_step_leaves_is_a_regular_file(tmp_path: Path, canary: Path) -> None:
    """A link or pipe that a tool has left is no result."""
    workspace = Workspace(tmp_path / "out", "toy")
    makes: dict[str, Callable[[Path], object]] = {
        "link": lambda folder: (folder / "it").symlink_to(canary),
        "pipe": lambda folder: os.mkfifo(folder / "it"),
    }
    for name, make in makes.items():
        with workspace.locked(), pytest.raises(ContractError, match=f"`{name}` left it, a link or"):
            workspace.run(name, {}, lambda folder, make=make: make(folder) and None)


def test_a_leftover_brings_back_no_file_from_elsewhere(tmp_path: Path, canary: Path) -> None:
    """A forged one whose old content is a link to a folder. Oracle: the canary."""
    scratch = tmp_path / ".axcore.abcdefgh.partial"
    scratch.mkdir()
    (scratch / "old").symlink_to(canary.parent)
    (tmp_path / ".axcore.hgfedcba.partial").symlink_to(canary.parent)
    with appearing(tmp_path / "it") as partial:
        partial.write_text("new")
    assert not scratch.exists()


def test_what_killed_runs_left_anywhere_in_the_state_is_removed(tmp_path: Path) -> None:
    """In every series, and beside the manifest. Oracle: no scratch folder that is left."""
    out = tmp_path / "out"
    convert(out)
    for place in (".", STATE, f"{STATE}/convert", f"{STATE}/build-gone/steps/x"):
        left = out / place / ".axcore.abcdefgh.partial"
        left.mkdir(parents=True)
        (left / "new").write_text("half")
    convert(out, text="2")
    assert not list(out.rglob("*.partial"))


# Two steps, one name -----------------------------------------------------------------------------


def test_two_steps_never_write_one_name(tmp_path: Path) -> None:
    """Of one series, and of two. Oracle: both names and the file in the message."""
    convert(tmp_path)
    for series, name in (("convert", "b"), ("build-toy", "b")):
        workspace = Workspace(tmp_path, "toy", series)
        with workspace.locked():
            if series == "convert":
                workspace.run("a", {"text": "1"}, lambda f: (f / "a.txt").write_text("1") and None)
            with pytest.raises(ContractError, match=r"two steps write a\.txt: `a` of convert") as e:
                workspace.run(name, {}, lambda folder: (folder / "a.txt").write_text("2") and None)
        assert f"`{name}` of {series}" in e.value.message
    assert (tmp_path / "a.txt").read_text() == "1"


# What is the user's ------------------------------------------------------------------------------


def test_no_edit_is_lost(tmp_path: Path) -> None:
    """The second and third one, of any size. Oracle: their texts."""
    edits = ["first", "second", "x" * (3 << 20)]
    for number, edit in enumerate(edits):
        convert(tmp_path, text=str(number))
        (tmp_path / "a.txt").write_text(edit)
    convert(tmp_path, text="last")
    names = ["a.txt.orig", "a.txt.orig.1", "a.txt.orig.2"]
    assert [(tmp_path / name).read_text() for name in names] == edits
    assert (tmp_path / "a.txt").read_text() == "last"


def test_an_edited_file_of_a_step_that_is_gone_is_kept(tmp_path: Path) -> None:
    """It is no longer made, but what it holds is not ours. Oracle: their text."""
    convert(tmp_path)
    (tmp_path / "a.txt").write_text("mine")
    convert(tmp_path, name="b", file="b.txt")
    assert (tmp_path / "a.txt.orig").read_text() == "mine"
    assert not (tmp_path / "a.txt").exists()


# Checksums ---------------------------------------------------------------------------------------


def test_content_replaced_at_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    """In place, its time of writing set back. Oracle: the file read anew."""
    path, checksums = tmp_path / "a", Checksums(tmp_path / "sums.json")
    path.write_text("one")
    before, times = checksums.of(path), path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert checksums.of(path) == Content(3, sha256(path)) != before


def test_a_rename_costs_no_reading(tmp_path: Path, hashed: list[str]) -> None:
    """It changes the time of status change alone. Oracle: the reads."""
    path, checksums = tmp_path / "a", Checksums(tmp_path / "sums.json")
    path.write_text("one")
    known = checksums.of(path)
    checksums.move(path, tmp_path / "b")
    assert checksums.of(tmp_path / "b") == known
    assert hashed == ["a"]


def test_a_conversion_reads_each_result_once(tmp_path: Path, hashed: list[str]) -> None:
    """Made, moved into place, and found again by the next run. Oracle: the reads."""
    convert(tmp_path)
    convert(tmp_path)
    assert hashed.count("a.txt") == 1
    assert Workspace(tmp_path, "toy").is_current("i")
    assert hashed.count("a.txt") == 1


def test_a_flipped_byte_is_made_again(tmp_path: Path) -> None:
    """Of equal size, its time set back. Oracle: the bytes before."""
    convert(tmp_path)
    times = (tmp_path / "a.txt").stat()
    (tmp_path / "a.txt").write_text("2")
    os.utime(tmp_path / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not Workspace(tmp_path, "toy").is_current("i")
    assert not convert(tmp_path).reused
    assert (tmp_path / "a.txt").read_text() == "1"


# Places that take no file, and pipes -------------------------------------------------------------


@pytest.fixture
def another_user() -> Iterator[Path]:
    """A bundle of somebody else, which this process may only read."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "out")
        convert(out)
        for path in (out.parent, *out.parent.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.seteuid(65534)
        try:
            yield out
        finally:
            os.seteuid(0)


def test_a_bundle_that_can_only_be_read(another_user: Path) -> None:
    """Whether it is up to date can be asked; working in it is refused, with the reason."""
    workspace = Workspace(another_user, "toy")
    assert workspace.is_current("i")
    with pytest.raises(BundleError, match="Permission denied") as caught, workspace.locked():
        raise AssertionError
    assert "may write to" in caught.value.hint
    assert [step.name for step in published(another_user / STATE / "convert")] == ["a"]


@pytest.mark.parametrize(
    "name",
    [MANIFEST, CHECKSUMS, f"{STATE}/convert/last.json", f"{STATE}/convert/published/a.json"],
)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """Where a record should be. Oracle: the run ends, and makes what is missing."""
    convert(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    Workspace(tmp_path, "toy").is_current("i")
    if name != MANIFEST:
        convert(tmp_path)


def test_records_of_builds_are_read_by_toolchain(tmp_path: Path) -> None:
    """Oracle: what the steps of two series wrote."""
    for series in ("build-x", "build-y"):
        (tmp_path / STATE).mkdir(exist_ok=True)
        workspace = Workspace(tmp_path, "toy", series)
        with workspace.locked():
            step = workspace.run(
                "s", {}, lambda f, s=series: (f / f"{s}.bin").write_text(s) and None
            )
            workspace.publish()
        assert builds(tmp_path)[series.removeprefix("build-")] == [replace(step, reused=True)]


# Names -------------------------------------------------------------------------------------------

PARTS = st.sampled_from(["..", ".", "", "a", "b", "link", "back", "~", "a\0", "\\", "é", "x" * 300])


@given(st.lists(PARTS, max_size=6).map("/".join) | st.text(max_size=12))
def test_no_name_leads_out(name: str) -> None:
    """Whatever it is made of, links on its way included.

    Oracle: the kernel's own resolution of the path, and POSIX's rule for absolute names.
    """
    with tempfile.TemporaryDirectory() as outer:
        root = Path(os.path.realpath(outer), "root")
        (root / "a").mkdir(parents=True)
        (root / "link").symlink_to("..")
        (root / "back").symlink_to("a")
        try:
            path = inside(root, name)
        except ValueError:
            return
        check_name(name)
        assert os.path.realpath(path).startswith(f"{root}/")
        assert not name.startswith("/")


@pytest.mark.parametrize("name", ["build", "build/stem", "build/x/stem"])
def test_a_folder_of_ours_is_no_link(tmp_path: Path, canary: Path, name: str) -> None:
    """Neither it nor one above it, wherever the link leads. Oracle: a folder that is none."""
    root = tmp_path / "root"
    assert own_folder(root / "whole", name).is_dir()
    for target in (canary.parent, root):
        link = root / name.split("/")[0]
        link.symlink_to(target)
        with pytest.raises(ValueError, match="link"):
            own_folder(root, name)
        link.unlink()
