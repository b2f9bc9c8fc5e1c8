"""The life of a bundle: converted, built, edited, moved, packaged, asked, and killed at any moment.

What is done is drawn by hypothesis. A toy conversion and build stand in for the real ones, which
write through the same `Workspace`; packaging and prediction files are the real ones.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, ClassVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import axcore
from axcore.bundle import MANIFEST, STATE, Bundle

from ..packaging import toys
from . import life

ROOT = Path(axcore.__file__).parents[1]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))  # `make fuzz` asks for more

MOMENTS = st.integers(0, 60)  # 0: not killed
REQUESTS = st.dictionaries(st.sampled_from(["one", "two"]), st.sampled_from("abc"), min_size=1)
LARGE = 1 << 21


class Orders:
    """A process that carries out orders (`life`)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.life"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def give(self, do: str, out: Path, value: Any, die_at: int = 0) -> int:
        """Give an order and return how it ended."""
        order = {"do": do, "out": str(out), "value": value, "die_at": die_at}
        _pipe(self._process.stdin).write(json.dumps(order) + "\n")
        _pipe(self._process.stdin).flush()
        code = int(_pipe(self._process.stdout).readline())
        assert code in (life.DONE, life.REFUSED, life.DEAD), f"{order} ended with {code}"
        return code

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file that is not state."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in paths}
    return {n: p.read_bytes() for n, p in named.items() if Path(n).parts[0] != STATE}


def litter(folder: Path) -> list[str]:
    """Return what a run that ended well should not have left."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return [
        n
        for n in names
        if n.endswith((".partial", ".replaced")) or "/steps" in n or "/publishing" in n
    ]


class Life(RuleBasedStateMachine):
    """A bundle, what it was asked to be, and what its user wrote into it."""

    orders: ClassVar[Orders]

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="axcore-life-"))
        self.out, self.numbers = self.place / "bundle", itertools.count()
        self.request: dict[str, str] | None = None  # of the last conversion that ended well
        self.asked: list[dict[str, str]] = []  # since then, and killed
        self.builds: set[str] = set()
        self.edits: dict[str, bytes] = {}  # text to where it was written
        self.answers: dict[str, str] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @initialize(request=REQUESTS)
    def begin(self, request: dict[str, str]) -> None:
        self.convert(request, 0)

    @rule(request=REQUESTS, moment=MOMENTS)
    def convert(self, request: dict[str, str], moment: int) -> None:
        """Convert, with another request or the same. Oracle: what an undisturbed run writes.

        A run that is killed has either left the manifest alone, or all its files were in place.
        """
        before = files_of(self.out) if self.out.exists() else {}
        code = self.orders.give("convert", self.out, request, moment)
        found, wanted = files_of(self.out) if self.out.exists() else {}, life.contents(request)
        if code == life.DONE or found.get(MANIFEST) != before.get(MANIFEST):
            assert {name: found.get(name) for name in wanted} == wanted
        if code == life.DEAD:
            self.asked.append(request)
            return
        assert code == life.DONE
        spare = life.contents({"one": "", "two": ""}).keys() - wanted.keys()
        assert all(found.get(name) in (None, *self.edits.values()) for name in spare)
        assert set(json.loads(found[MANIFEST])["files"]) == wanted.keys()
        assert not [name for name in litter(self.out) if f"{life.BUILD}/" not in name]
        self.request, self.asked = request, []

    @rule(moment=MOMENTS)
    def convert_again(self, moment: int) -> None:
        """Ask for the same: after a kill it ends as if there had been none."""
        if self.request is not None:
            self.convert(self.request, moment)

    @precondition(lambda self: self.request is not None and not self.asked)
    @rule(value=st.sampled_from("xyz"), moment=MOMENTS)
    def build(self, value: str, moment: int) -> None:
        """Build. Oracle: what follows from the graphs that lie there."""
        graphs = {n: c for n, c in files_of(self.out).items() if n in self._graphs()}
        self.builds.add(value)
        if self.orders.give("build", self.out, value, moment) == life.DONE:
            found = files_of(self.out)
            for name, graph in graphs.items():
                assert found[name.replace(".onnx", ".axmodel")] == life.built(graph, value)

    @precondition(lambda self: self.request is not None)
    @rule(data=st.data(), large=st.booleans())
    def edit(self, data: st.DataObject, large: bool) -> None:
        """Write into a file of the bundle, or beside them."""
        ours = [n for n in life.contents(self.request or {}) if (self.out / n).is_file()]
        name = data.draw(st.sampled_from([*ours, "notes.md"]))
        content = f"edit {next(self.numbers)}".encode() + b"." * (LARGE if large else 0)
        before = (self.out / name).read_bytes() if (self.out / name).is_file() else b""
        self.edits = {text: c for text, c in self.edits.items() if c != before}  # overwritten
        (self.out / name).write_bytes(content)
        self.edits[content[:20].decode()] = content

    @rule(copy=st.booleans())
    def move(self, copy: bool) -> None:
        """Go on with the bundle in another place."""
        there = self.place / f"bundle{next(self.numbers)}"
        if copy:
            shutil.copytree(self.out, there)
            shutil.rmtree(self.out)
        else:
            self.out.rename(there)
        self.out = there

    @rule(moment=MOMENTS)
    def answer(self, moment: int) -> None:
        """Ask about images. Oracle: a kill loses no answer that was there before."""
        new = {f"{next(self.numbers)}.jpg": "it" for _ in range(3)}
        path = self.place / "answers.json"
        code = self.orders.give("answer", path, new, moment)
        found = json.loads(path.read_bytes()) if path.exists() else {}
        assert self.answers.items() <= found.items() <= (self.answers | new).items()
        assert code == life.DEAD or found == self.answers | new
        self.answers = found

    @invariant()
    def no_edit_is_lost(self) -> None:
        """What the user wrote is in its place, or kept aside."""
        kept = set(files_of(self.out).values()) if self.out.exists() else set()
        lost = [text for text, content in self.edits.items() if content not in kept]
        assert not lost

    @invariant()
    def no_file_is_half_written(self) -> None:
        """Every file is as some request made it: the last that ended well, or one killed since."""
        if not (self.out / MANIFEST).is_file():
            return
        found = files_of(self.out)
        requests = [r for r in (self.request, *self.asked) if r is not None]
        made: dict[str, set[bytes]] = {}
        for request in requests:
            for name, content in life.contents(request).items():
                made.setdefault(name, set()).add(content)
        for name, contents in made.items():
            assert found.get(name) in (None, *contents, *self.edits.values()), name

    def _graphs(self) -> list[str]:
        return [name for name in life.contents(self.request or {}) if name.endswith(".onnx")]


class Boards(RuleBasedStateMachine):
    """A folder for a board: packaged again and again, killed, and used by its owner."""

    orders: ClassVar[Orders]

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="axcore-board-"))
        toys.write_family(self.place / "site", toys.AXLLM)
        sys.path.insert(0, str(self.place / "site"))
        sys.modules.pop(toys.MODULE, None)
        toys.write_bundle(self.place / "bundle")
        sys.path.remove(str(self.place / "site"))
        self.before, self.out = files_of(self.place / "bundle"), self.place / "board"
        self.own: dict[Path, str] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @rule(runtime=st.sampled_from(["axllm", "python"]), moment=st.integers(0, 120))
    def package(self, runtime: str, moment: int) -> None:
        """Package. Oracle: the manifest of the folder, and that nothing lies beside it."""
        value = {"bundle": str(self.place / "bundle"), "site": str(self.place / "site")}
        if self.orders.give("package", self.out, value | {"runtime": runtime}, moment) == life.DONE:
            Bundle.open(self.out).check_files()
            assert {path.name for path in self.place.iterdir()} <= {"site", "bundle", "board"}

    @precondition(lambda self: self.out.is_dir())
    @rule(name=st.sampled_from(["results.csv", "axcore.log", "photos/cat.jpg"]))
    def keep(self, name: str) -> None:
        """The owner keeps a file there."""
        (self.out / name).parent.mkdir(exist_ok=True)
        (self.out / name).write_text("mine")
        self.own[self.out / name] = "mine"

    @invariant()
    def nothing_of_others_changes(self) -> None:
        """The bundle is as it was, and the owner's files are there."""
        assert files_of(self.place / "bundle") == self.before
        assert [path for path in self.own if not path.is_file()] == []


def run(machine: type[Any], examples: int, steps: int) -> None:
    """Run a state machine with a process of its own for orders."""
    machine.orders = Orders()
    try:
        chosen = settings(
            max_examples=examples, stateful_step_count=steps, deadline=None,
            phases=[Phase.generate],  # shrinking takes minutes, and a life is short already
        )  # fmt: skip
        run_state_machine_as_test(machine, settings=chosen)
    finally:
        machine.orders.end()


def test_the_life_of_a_bundle() -> None:
    """Whatever was done and wherever it was killed, bundle and edits survive. Oracles: above."""
    run(Life, EXAMPLES, 12)


def test_the_life_of_a_board_folder() -> None:
    """The same of packaging."""
    run(Boards, max(EXAMPLES // 4, 3), 5)
