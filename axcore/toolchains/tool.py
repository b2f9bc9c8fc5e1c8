"""Building with a vendor's tool, in runs that leave files.

A toolchain says what its tool is (`Tool`), with what arguments it is called and what files it then
leaves (`Run`). `run_tool` sees to the rest: steps, logs and failures.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ToolchainError
from ..files import lock
from ..foreign import check_name, load, open_regular
from ..limits import ANSWER_BYTES, ANSWER_S, LOG_END_BYTES, RECORD_BYTES
from ..process import GRACE_S, child, ending, output_of, short_of_memory
from .output import answer, lines, without_escapes
from .turns import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .contract import Build, GraphFile

REPORT = ".build.json"
"""How the name of a file ends that says what a run came to."""

_CONTAINERS = ("docker", "podman")
_LAST_LINES = 20
_WAIT_S, _POLL_S = 5.0, 0.05


@dataclass(frozen=True)
class Tool:
    """A program that builds.

    Attributes:
        name: As messages call it.
        words: What starts it; the first is an absolute path.
        remedy: What to do where it cannot be started.
        advice: What else to think of where it fails; may be empty.
        version: What it says of itself; another version builds again. Empty where it says nothing.
        alone: Whether two runs at once on a machine spoil one another; the second one then waits.
        explain: Given the end of a log and how the tool ended, see `ending`, returns what is known
            of that failure; empty where nothing is.
    """

    name: str
    words: tuple[str, ...]
    remedy: str
    advice: str = ""
    version: tuple[str, ...] = ()
    alone: bool = False
    explain: Callable[[str, int], str] = lambda _said, _code: ""

    @classmethod
    def find(cls, name: str, command: str, *, remedy: str, advice: str = "") -> Tool:
        """Look for what `command` names: one or several words in a shell's quoting.

        Raises:
            ToolchainError: Its first word is no program here.
        """
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ToolchainError(
                f"the command `{command}` cannot be split into words: {error}",
                hint="close its quotes",
            ) from error
        path = shutil.which(words[0]) if words else None
        if path is None:
            raise ToolchainError(f"`{' '.join(words[:1])}` is not on PATH", hint=remedy)
        return cls(name, (str(Path(path).absolute()), *words[1:]), remedy, advice)

    def ask(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Return what it answers in `folder`, e.g. to ``--version``; ``stdout`` has all it printed.

        Raises:
            ToolchainError: It cannot be started, or does not come to an end.
        """
        words = [*self.words, *arguments]
        try:
            with child(words, folder, {}) as process:
                said = answer(output_of(process), ANSWER_BYTES, ANSWER_S)
                return subprocess.CompletedProcess(words, process.wait(), said)
        except TimeoutError as error:
            raise self._endless(words, f"runs for more than {ANSWER_S:g} s") from error
        except ValueError as error:
            raise self._endless(words, f"prints more than {ANSWER_BYTES} bytes") from error
        except OSError as error:
            raise self.unstartable(error) from error

    def _endless(self, words: Sequence[str], fact: str) -> ToolchainError:
        return ToolchainError(
            f"`{shlex.join(words)}` {fact}",
            hint=f"run it yourself to see what {self.name} does; then name what starts it anew",
        )

    def command(self, arguments: Iterable[str], environment: Mapping[str, str]) -> list[str]:
        """Return the whole command; `environment` is handed into a container, which needs that."""
        words = list(self.words)
        if self.in_container:
            at = words.index("run") + 1
            words[at:at] = [word for item in environment.items() for word in ("-e", "=".join(item))]
        return [*words, *arguments]

    @property
    def in_container(self) -> bool:
        """Whether it is a daemon that runs it, in a container."""
        return Path(self.words[0]).name in _CONTAINERS and "run" in self.words

    def unstartable(self, error: OSError) -> ToolchainError:
        """Return what to raise where the system refuses to start it."""
        return ToolchainError(f"`{self.words[0]}` cannot be started: {error}", hint=self.remedy)


@dataclass(frozen=True)
class Run:
    """One run of the tool, in the bundle.

    Attributes:
        name: Names its folder, which the tool fills, and its log: see `run_tool`.
        arguments: What follows the words that start the tool.
        inputs: Files it reads; a change of any makes it run again.
        promised: Given the filled folder, the names that its files get in the bundle, each with
            the pattern (as of `Path.glob`) that exactly one file in the folder must match.
        environment: Variables the tool must see.
        examine: Given the filled folder, the log, and the time of the start (as of `os.stat`; what
            is older in the folder is of an earlier run), returns what the run came to, JSON-like.
            It becomes a file of the bundle, ``<name>.build.json``, with the seconds that it took
            and the most memory that one process had, in bytes. A `ToolchainError` fails the step.
    """

    name: str
    arguments: Sequence[str]
    inputs: Sequence[Path]
    promised: Callable[[Path], Mapping[str, str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    examine: Callable[[Path, Path, float], Mapping[str, Any]] | None = None


def run_tool(build: Build, tool: Tool, runs: Sequence[Run], folder: str) -> dict[str, Path]:
    """Run what is not finished, each as a step of `build`.

    Args:
        build: The bundle.
        tool: What is run.
        runs: In their order.
        folder: Folder in the bundle for working files: for every run the folder ``<name>/``, which
            the tool fills, and the file ``<name>.log``.

    Returns:
        Name of every run that is examined to the file with what it came to, be it made now or in
        an earlier build.

    Raises:
        ToolchainError: The tool cannot be started, failed, or left files out.
    """
    reports: dict[str, Path] = {}
    with build.progress.task("build", len(runs), "steps") as task:
        for run in runs:
            build.progress.say(f"{run.name}: comparing {len(run.inputs)} files with the last build")
            words = tool.command(run.arguments, run.environment)
            inputs = {
                "words": words,
                "environment": dict(run.environment),
                "version": tool.version,
                "files": {path.name: path for path in run.inputs},
                "report": run.examine and report_file(run.name),
            }
            made = build.step(run.name, inputs, partial(_results, build, tool, run, words, folder))
            reports.update((run.name, path) for path in made if path.name == inputs["report"])
            task.advance()
    return reports


def report_file(run: str) -> str:
    """Name of the file with what a run came to, in the bundle."""
    return f"{run}{REPORT}"


def results_in(files: Iterable[Path]) -> dict[str, Any]:
    """Return what runs came to, by their names, as far as `files` hold it.

    Raises:
        ToolchainError: A file is damaged.
    """
    hint = "remove it and run the same command again"
    return {
        path.name.removesuffix(REPORT): load(dict, path, RECORD_BYTES, ToolchainError, hint=hint)
        for path in files
        if path.name.endswith(REPORT)
    }


def _results(
    build: Build, tool: Tool, run: Run, words: Sequence[str], folder: str, target: Path
) -> None:
    """Run the tool, and move what it promised into `target`."""
    output = _own_folder(build.folder, f"{folder}/{run.name}")
    log, place = output.with_name(f"{run.name}.log"), output.resolve()
    with ExitStack() as stack:
        held = [stack.enter_context(_alone(output.parent, tool))]
        if tool.alone:
            held += stack.enter_context(turn(tool.name, build.progress))
        for path in list(output.iterdir()):
            if path.is_symlink() or path.is_file():
                path.unlink()  # an old file must not be taken for a result
        build.progress.say(f"{run.name}: building, log in {log}")
        cost = _call(build, tool, run, words, log, held)
    found = _found(tool, run, output, place, log)
    if run.examine:
        seen = run.examine(output, log, cost.since)
        peak = None if tool.in_container else cost.peak_bytes or None
        result = {**seen, "seconds": cost.seconds, "peak_bytes": peak}
        text = json.dumps(result, indent=1, allow_nan=False)
        (target / report_file(run.name)).write_text(f"{text}\n", encoding="utf-8")
    for name, path in found.items():
        path.replace(target / name)


def _found(tool: Tool, run: Run, output: Path, place: Path, log: Path) -> dict[str, Path]:
    """Return the files that were promised; `place` is `output`, resolved before the run.

    Raises:
        ToolchainError: One is missing, or several might be meant.
    """
    promised = run.promised(output)
    found = {
        name: [path for path in output.glob(pattern) if _is_own_file(place, path)]
        for name, pattern in promised.items()
    }
    wrong = [name for name, paths in found.items() if len(paths) != 1]
    if wrong:
        raise ToolchainError(
            f"build step `{run.name}` exited with 0, but {len(wrong)} of {len(found)} files "
            "are missing or ambiguous\n"
            f"  first: {len(found[wrong[0]])} files instead of 1 match {promised[wrong[0]]}\n"
            f"  folder: {output}\n"
            f"  log: {log}",
            hint=tool.explain(_end_of(log), 0) or f"look in the log for what {tool.name} skipped",
        )
    return {name: path for name, (path,) in found.items()}


def _own_folder(bundle: Path, name: str) -> Path:
    """Make the folder ``name`` of the bundle; by a link, a tool would fill somebody else's.

    Raises:
        ToolchainError: A part of it is a link or a file.
    """
    check_name(name)
    path = bundle
    for part in name.split("/"):
        path /= part
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise ToolchainError(
                f"{path} is a {'link' if path.is_symlink() else 'file'}, not a folder of the build",
                hint="remove it and run the same command again",
            )
        # By this process, so that files which a container writes as root can be moved out.
        path.mkdir(exist_ok=True)
    return path


@contextmanager
def _alone(folder: Path, tool: Tool) -> Iterator[int]:
    """Lock a working folder; yields the descriptor by which a run of the tool keeps the lock.

    A build that was killed has locked it until its tool has ended, which takes seconds.

    Raises:
        ToolchainError: It has not ended.
    """
    until = time.monotonic() + GRACE_S + _WAIT_S
    while (held := lock(folder / "lock")) is None:
        if time.monotonic() > until:
            raise ToolchainError(
                f"{tool.name} still runs for an earlier build in {folder}",
                hint="wait for it to end, or stop it, and run the same command again",
            )
        time.sleep(_POLL_S)
    try:
        yield held
    finally:
        os.close(held)


def _is_own_file(place: Path, path: Path) -> bool:
    """Say whether `path` is a regular file below the resolved `place`, no link, nor behind one."""
    return path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(place)


@dataclass(frozen=True)
class _Cost:
    """What a run took.

    Attributes:
        since: Time of its start, by the clock of the file system.
        seconds: Until its end.
        peak_bytes: The most memory that one of its processes had; 0 where that is not known.
    """

    since: float
    seconds: float
    peak_bytes: int


def _call(
    build: Build, tool: Tool, run: Run, words: Sequence[str], log: Path, held: Sequence[int]
) -> _Cost:
    """Run a command; its lines go to the progress and into `log` as they come."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    log.unlink(missing_ok=True)  # it may be a link, or another user's
    with ExitStack() as stack:
        file = stack.enter_context(log.open("xb"))
        since, started = os.fstat(file.fileno()).st_mtime, time.monotonic()
        try:
            process = stack.enter_context(child(words, build.folder, run.environment, held=held))
        except OSError as error:
            raise tool.unstartable(error) from error
        for line in lines(output_of(process), file):
            last.append(line)
            build.progress.say(line)
        code, peak = process.wait(), process.peak_bytes()
    if code:
        raise _failure(tool, run.name, words, code, log, last)
    return _Cost(since, round(time.monotonic() - started, 1), peak)


def _end_of(log: Path) -> str:
    """Return the end of a log, in which tools say why they fail."""
    with open_regular(log) as file:
        file.seek(max(os.fstat(file.fileno()).st_size - LOG_END_BYTES, 0))
        return without_escapes(file.read(LOG_END_BYTES).decode(errors="replace"))


def _failure(
    tool: Tool, name: str, words: Sequence[str], code: int, log: Path, last: Iterable[str]
) -> ToolchainError:
    lines = "".join(f"\n    {line}" for line in last) or " none"
    causes = ["it was probably killed because memory ran out"] if short_of_memory(code) else []
    if known := tool.explain(_end_of(log), code):
        causes = [known]
    causes += ["correct the cause and run the same command again: finished steps are kept"]
    causes += [tool.advice] if tool.advice else []
    return ToolchainError(
        f"build step `{name}` failed: {tool.name} {ending(code)}\n"
        f"  command: {shlex.join(words)}\n"
        f"  log: {log}\n"
        f"  last lines:{lines}",
        hint="; ".join(causes),
    )


def graph_files(bundle: Path, graph: GraphFile) -> list[Path]:
    """Return the ONNX file of a graph, and that of its weights if it has one.

    Raises:
        ToolchainError: The graph is missing.
    """
    onnx = required(graph.stem, bundle / f"{graph.stem}.onnx", "run `axcore convert` again")
    weights = onnx.with_name(f"{onnx.name}.data")
    return [onnx, weights] if weights.is_file() else [onnx]


def required(step: str, path: Path, remedy: str) -> Path:
    """Return `path`, a file without which a step cannot begin.

    Raises:
        ToolchainError: It is missing; `remedy` is the hint.
    """
    if not path.is_file():
        raise ToolchainError(f"build step `{step}` cannot begin\n  missing: {path}", hint=remedy)
    return path
