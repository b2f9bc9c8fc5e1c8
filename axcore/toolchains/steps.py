"""Building a bundle in steps, each a run of a vendor's tool that leaves files.

A toolchain says what its tool is (`Tool`), with what arguments it is called and what files it then
leaves (`Step`). `Steps` sees to the rest: logs, failures, and that nothing finished is repeated.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ToolchainError
from ..process import child, ending, short_of_memory
from .state import Finished, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..progress import Progress
    from .contract import GraphFile

_CONTAINERS = ("docker", "podman")
_LAST_LINES = 20


@dataclass(frozen=True)
class Tool:
    """A program that builds.

    Attributes:
        name: As messages call it.
        words: What starts it; the first is an absolute path.
        remedy: What to do where it cannot be started.
        advice: What else to think of where it fails; may be empty.
        version: What it says of itself; another version builds again. Empty where it says nothing.
    """

    name: str
    words: tuple[str, ...]
    remedy: str
    advice: str = ""
    version: tuple[str, ...] = ()

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
            ToolchainError: It cannot be started.
        """
        try:
            return subprocess.run(
                [*self.words, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise self.unstartable(error) from error

    def command(self, arguments: Iterable[str], environment: Mapping[str, str]) -> list[str]:
        """Return the whole command; `environment` is handed into a container, which needs that."""
        words = list(self.words)
        if Path(words[0]).name in _CONTAINERS and "run" in words:
            at = words.index("run") + 1
            words[at:at] = [word for item in environment.items() for word in ("-e", "=".join(item))]
        return [*words, *arguments]

    def unstartable(self, error: OSError) -> ToolchainError:
        """Return what to raise where the system refuses to start it."""
        return ToolchainError(f"`{self.words[0]}` cannot be started: {error}", hint=self.remedy)


@dataclass(frozen=True)
class Step:
    """One run of the tool, in the bundle.

    Attributes:
        name: Names its folder, which the tool fills, and its log: see `Steps`.
        arguments: What follows the words that start the tool.
        inputs: Files it reads; a change of any makes the step run again.
        promised: Given the filled folder, the names that its files get in the bundle, each with
            the pattern (as of `Path.glob`) that exactly one file in the folder must fit.
        environment: Variables the tool must see.
    """

    name: str
    arguments: Sequence[str]
    inputs: Sequence[Path]
    promised: Callable[[Path], Mapping[str, str]]
    environment: Mapping[str, str] = field(default_factory=dict)


class Steps:
    """The steps of a bundle, and what is known of earlier runs.

    Args:
        bundle: Its absolute path.
        folder: Name in the bundle for what is no result: ``state.json``, and for every step the
            folder ``<step>/`` and the file ``<step>.log``.
        tool: What runs them.
        progress: Where messages and the tool's lines go.
    """

    def __init__(self, bundle: Path, folder: str, tool: Tool, progress: Progress) -> None:
        self._bundle = bundle
        self._folder = bundle / folder
        self._tool = tool
        self._progress = progress
        self._state_file = self._folder / "state.json"
        self._state = State.load(self._state_file)

    def run(self, steps: Sequence[Step]) -> list[Path]:
        """Run what is not finished and return all files made; those of other steps go.

        Raises:
            ToolchainError: The tool cannot be started, failed, or left files out.
        """
        made: list[Path] = []
        with self._progress.task("build", len(steps), "steps") as task:
            for step in steps:
                made += self._finish(step)
                task.advance()
        for name in sorted(set(self._state.steps) - {step.name for step in steps}):
            self._remove(self._state.steps.pop(name).outputs.keys() - {path.name for path in made})
        self._state.save(self._state_file)
        return made

    def _finish(self, step: Step) -> list[Path]:
        self._progress.say(f"{step.name}: comparing {len(step.inputs)} files with the last build")
        words = self._tool.command(step.arguments, step.environment)
        key = self._state.key(words, step.environment, self._tool.version, step.inputs)
        # Hashing a checkpoint takes a while; it must not be lost when the step fails.
        self._state.save(self._state_file)
        done = self._state.outputs_of(step.name, key, self._bundle)
        if done is not None:
            self._progress.say(f"{step.name}: already built")
            return done
        return self._keep(step.name, key, self._run(step, words))

    def _run(self, step: Step, words: Sequence[str]) -> dict[str, Path]:
        """Run the tool; return its files under the names that they get in the bundle."""
        folder = self._folder / step.name
        # Made by us, so that what a container writes as root can still be moved out of it.
        folder.mkdir(parents=True, exist_ok=True)
        for path in list(folder.iterdir()):
            if path.is_file():
                path.unlink()  # it must not pass for a result
        log = self._folder / f"{step.name}.log"
        self._progress.say(f"{step.name}: building, log in {log}")
        self._call(step, words, log)
        return self._results(step, folder, log)

    def _call(self, step: Step, words: Sequence[str], log: Path) -> None:
        """Run a command, its lines going to the progress and into `log` as they come."""
        last: deque[str] = deque(maxlen=_LAST_LINES)
        with ExitStack() as stack:
            file = stack.enter_context(log.open("w", encoding="utf-8", buffering=1))
            try:
                process = stack.enter_context(child(words, self._bundle, step.environment))
            except OSError as error:
                raise self._tool.unstartable(error) from error
            for line in process.stdout or ():
                file.write(line)
                if text := line.rstrip():
                    last.append(text)
                    self._progress.say(text)
            code = process.wait()
        if code:
            raise self._failure(step.name, words, code, log, last)

    def _failure(
        self, step: str, words: Sequence[str], code: int, log: Path, last: Iterable[str]
    ) -> ToolchainError:
        lines = "".join(f"\n    {line}" for line in last) or " none"
        causes = ["it was probably killed for want of memory"] if short_of_memory(code) else []
        causes += ["correct the cause and run the same command again: finished steps are kept"]
        causes += [self._tool.advice] if self._tool.advice else []
        return ToolchainError(
            f"build step `{step}` failed: {self._tool.name} {ending(code)}\n"
            f"  command: {shlex.join(words)}\n"
            f"  log: {log}\n"
            f"  last lines:{lines}",
            hint="; ".join(causes),
        )

    def _results(self, step: Step, folder: Path, log: Path) -> dict[str, Path]:
        promised = step.promised(folder)
        found = {
            name: [path for path in folder.glob(pattern) if path.is_file()]
            for name, pattern in promised.items()
        }
        wrong = [name for name, paths in found.items() if len(paths) != 1]
        if wrong:
            raise ToolchainError(
                f"build step `{step.name}` exited with 0, but {len(wrong)} of {len(found)} files "
                "are missing or in doubt\n"
                f"  first: {len(found[wrong[0]])} files instead of 1 fit {promised[wrong[0]]}\n"
                f"  folder: {folder}\n"
                f"  log: {log}",
                hint=f"look in the log for what {self._tool.name} skipped",
            )
        return {name: path for name, (path,) in found.items()}

    def _keep(self, step: str, key: str, results: Mapping[str, Path]) -> list[Path]:
        """Move files to the top of the bundle and note them; those of an older build go."""
        older = self._state.steps.get(step)
        sizes = {name: path.stat().st_size for name, path in results.items()}
        for name, path in results.items():
            path.replace(self._bundle / name)
        self._remove(set(older.outputs if older else ()) - set(sizes))
        self._state.steps[step] = Finished(key=key, outputs=sizes)
        self._state.save(self._state_file)
        return [self._bundle / name for name in sizes]

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self._bundle / name).unlink(missing_ok=True)


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
