"""Steps in an output folder: done once, published together, and safe from crashes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from axcore.bundle import MANIFEST, STATE
from axcore.errors import BundleError
from axcore.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping

# A conversion in small: two steps of two files each, then the manifest. What a step writes follows
# from `value` alone. `reach` is told of every phase.
CONVERSION = """
import json
from axcore.workspace import Workspace

def convert(out, value, reach):
    def make(name):
        def work(folder):
            reach("begin")
            (folder / f"{name}.onnx").write_bytes((name + value).encode() * 1000)
            reach("between files")
            (folder / "deep").mkdir()
            (folder / "deep" / f"{name}.tar").write_text(value)
            reach("end")
            return {"length": len(value)}
        return work

    workspace = Workspace(out, "toy")
    with workspace.locked():
        for name in ("first", "second"):
            workspace.run(name, {"value": value}, make(name))
            reach("step done")
        files = {
            name: {"size": stamp.size, "sha256": stamp.sha256}
            for step in workspace.steps
            for name, stamp in step.files.items()
        }
        metrics = [step.metrics for step in workspace.steps]
        listed = {"model": {"id": "toy"}, "files": files, "metrics": metrics}
        workspace.publish(json.dumps(listed, sort_keys=True))
    return [step.name for step in workspace.steps if step.reused]
"""
# The process ends itself without warning when it has reached phase number `at`; every rename is
# two, one before it and one behind. At the end it prints the kinds of all phases.
MORTAL = """
import os, signal, sys
from pathlib import Path

out, value, at, how = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
kinds = []

def reach(kind):
    kinds.append(kind)
    if len(kinds) == at:
        os.kill(os.getpid(), signal.SIGKILL) if how == "kill" else os._exit(70)

replace = Path.replace
def stepwise(self, target):
    parts = Path(target).relative_to(out).parts
    kind = ("/".join(parts[:3]) if parts[0] == ".axcore" else "") + Path(target).suffix
    reach(f"before {kind}")
    result = replace(self, target)
    reach(f"after {kind}")
    return result
Path.replace = stepwise
convert(out, value, reach)
print(json.dumps(kinds))
"""


def convert(out: Path, value: str = "v") -> list[str]:
    """Run the small conversion; return the steps that were taken over."""
    names: dict[str, Any] = {}
    exec(CONVERSION, names)
    kept: list[str] = names["convert"](out, value, lambda _: None)
    return kept


def die(out: Path, at: int, how: str = "exit") -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own that ends at a phase; 0 is none."""
    command = [sys.executable, "-c", CONVERSION + MORTAL, str(out), "v", str(at), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def content(out: Path) -> dict[str, bytes]:
    """Return every published file, state apart."""
    paths = (path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in paths
        if STATE not in path.relative_to(out).parts
    }


class Maker:
    """Counts how often each step does its work."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.made: list[str] = []

    def convert(self, steps: Mapping[str, Mapping[str, str]], inputs: str = "i") -> dict[str, str]:
        """Run steps (name to files) and publish; return what was kept for its owner, and where."""
        workspace = Workspace(self.out, "toy")
        with workspace.locked():
            for name, files in steps.items():
                workspace.run(name, {"files": files, "inputs": inputs}, self._work(name, files))
            listed = {
                name: {"size": stamp.size, "sha256": stamp.sha256}
                for step in workspace.steps
                for name, stamp in step.files.items()
            }
            return workspace.publish(json.dumps({"model": {"id": "toy"}, "files": listed}))

    def _work(self, step: str, files: Mapping[str, str]):  # type: ignore[no-untyped-def]
        def work(folder: Path) -> None:
            self.made.append(step)
            for name, text in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text)

        return work


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "out")


# What is done once -------------------------------------------------------------------------------


def test_equal_inputs_are_not_worked_on_again(maker: Maker) -> None:
    """The second run keeps all, bytes and times alike. Oracle: calls counted, files compared."""
    steps = {"a": {"a.txt": "1"}, "b": {"sub/b.txt": "2"}}
    maker.convert(steps)
    before, times = content(maker.out), (maker.out / "a.txt").stat().st_mtime_ns
    maker.convert(steps)
    assert maker.made == ["a", "b"]
    assert content(maker.out) == before
    assert (maker.out / "a.txt").stat().st_mtime_ns == times


def test_only_what_changed_is_redone(maker: Maker) -> None:
    """A step whose inputs change is redone, the other kept. Oracle: calls counted."""
    maker.convert({"a": {"a.txt": "1"}, "b": {"b.txt": "2"}})
    maker.convert({"a": {"a.txt": "1"}, "b": {"b.txt": "3"}})
    assert maker.made == ["a", "b", "b"]
    assert (maker.out / "b.txt").read_text() == "3"


def test_files_of_no_step_disappear(maker: Maker) -> None:
    """Renamed files and dropped steps leave nothing behind. Oracle: the names wanted."""
    maker.convert({"a": {"old.txt": "1", "deep/x.txt": "1"}, "gone": {"gone.txt": "1"}})
    maker.convert({"a": {"new.txt": "1"}})
    assert set(content(maker.out)) == {"new.txt", MANIFEST}
    assert not (maker.out / "deep").exists()


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_file_is_made_again(maker: Maker, damage: str) -> None:
    """Whatever happened to a published file, the step is redone. Oracle: the bytes before."""
    steps = {"a": {"a.txt": "right"}, "b": {"b.txt": "2"}}
    maker.convert(steps)
    before, path = content(maker.out), maker.out / "a.txt"
    path.unlink() if damage == "missing" else path.write_text("wrong" if damage[1] == "h" else "r")
    maker.convert(steps)
    assert maker.made == ["a", "b", "a"]
    kept = {"a.txt.orig"} if damage != "missing" else set()
    after = content(maker.out)
    assert {name: after[name] for name in after.keys() - kept} == before


def test_files_that_are_not_ours_stay(maker: Maker) -> None:
    """What somebody put into the folder is never touched. Oracle: their file."""
    maker.convert({"a": {"a.txt": "1"}})
    (maker.out / "notes.md").write_text("mine")
    maker.convert({"b": {"b.txt": "1"}})
    assert content(maker.out).keys() == {"b.txt", "notes.md", MANIFEST}


def test_a_file_in_the_way_is_kept_aside(maker: Maker) -> None:
    """A new name of ours that somebody used already. Oracle: their text."""
    maker.convert({"a": {"a.txt": "1"}})
    (maker.out / "build.sh").write_text("mine")
    assert maker.convert({"a": {"build.sh": "2"}}) == {"build.sh": "build.sh.orig"}
    assert (maker.out / "build.sh.orig").read_text() == "mine"


def test_a_manifest_cannot_lead_out_of_the_folder(maker: Maker, tmp_path: Path) -> None:
    """A name that climbs out is not removed as obsolete. Oracle: the file outside."""
    maker.convert({"a": {"a.txt": "1"}})
    outside = tmp_path / "precious"
    outside.write_text("x")
    path = maker.out / MANIFEST
    listed = {name: {"size": 1, "sha256": ""} for name in ("../precious", str(outside))}
    path.write_text(json.dumps({"model": {"id": "toy"}, "files": listed}))
    maker.convert({"a": {"a.txt": "2"}})
    assert outside.read_text() == "x"


# Folders that are refused ------------------------------------------------------------------------


def test_refused_folders(tmp_path: Path) -> None:
    """A file, somebody else's folder, another model's bundle: said, and left as it is.

    Oracle: the folder's content before.
    """
    file, foreign, other = tmp_path / "file", tmp_path / "foreign", tmp_path / "other"
    file.write_text("x")
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    Maker(other).convert({"a": {"a.txt": "1"}})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder, model, message in (
        (file, "toy", "is a file, not a folder"),
        (foreign, "toy", "holds something else: thesis.tex"),
        (other, "another", "holds a bundle of `toy`, not of `another`"),
    ):
        with (
            pytest.raises(BundleError, match=message) as caught,
            Workspace(folder, model).locked(),
        ):
            raise AssertionError
        assert caught.value.hint
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_empty_or_missing_folder_is_taken(tmp_path: Path) -> None:
    """Both are filled, parents included. Oracle: the file made."""
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        Maker(folder).convert({"a": {"a.txt": "1"}})
        assert (folder / "a.txt").read_text() == "1"


# Crashes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run leaves that nothing interrupts."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    convert(out)
    return content(out)


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The kinds of the phases of a run, in their order."""
    found: list[str] = json.loads(die(tmp_path_factory.mktemp("phases") / "out", at=0).stdout)
    assert found[:3] == ["begin", "between files", "end"]
    # The manifest is the last of the bundle's files; the record of checksums only saves time.
    assert found[-3:] == [
        "after .json",
        *(f"{when} .axcore/checksums.json.json" for when in ("before", "after")),
    ]
    return found


def samples(phases: list[str], beginning: int = 0) -> list[int]:
    """Number the phases to die at: the first and the last of each kind by turns."""
    kinds = dict.fromkeys(phases[beginning:])
    first = {kind: phases.index(kind, beginning) + 1 for kind in kinds}
    last = {kind: len(phases) - phases[::-1].index(kind) for kind in kinds}
    return [(first, last)[turn % 2][kind] for turn, kind in enumerate(kinds)]


def test_a_crash_anywhere_is_repaired_by_the_same_command(
    tmp_path: Path, undisturbed: dict[str, bytes], phases: list[str]
) -> None:
    """A first run that dies in a phase of each kind, then the same again.

    Oracle: the bytes of an undisturbed run.
    """
    for phase in samples(phases):
        out, how = tmp_path / str(phase), "kill" if phase % 3 == 0 else "exit"
        assert die(out, phase, how).returncode == (-signal.SIGKILL if how == "kill" else 70)
        convert(out)
        assert content(out) == undisturbed, phases[phase - 1]


def test_a_crash_over_an_earlier_bundle(
    tmp_path: Path, undisturbed: dict[str, bytes], phases: list[str]
) -> None:
    """The earlier bundle stays whole until publishing, and either bundle can be had afterwards.

    Oracle: the bytes of undisturbed runs.
    """
    changing = phases.index("before .tar") + 1
    publishing = phases.index("before .axcore/convert/publishing.json")
    for phase in (phases.index("between files") + 1, *samples(phases, publishing)):
        out = tmp_path / str(phase)
        convert(out, "old")
        old = content(out)
        assert die(out, phase).returncode == 70
        if phase <= changing:
            assert content(out) == old, phases[phase - 1]
        convert(out, "old")
        assert content(out) == old, phases[phase - 1]
        convert(out)
        assert content(out) == undisturbed, phases[phase - 1]


def test_a_finished_step_outlives_a_crash(tmp_path: Path, phases: list[str]) -> None:
    """The second run does not repeat what the first one finished. Oracle: where it ended."""
    die(tmp_path, phases.index("step done") + 1)
    assert convert(tmp_path) == ["first"]
