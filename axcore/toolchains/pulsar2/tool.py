"""Finding Pulsar2, asking it what it is, and running it as a child that never outlives us."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ToolchainError
from .commands import GENERATIONS, Generation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ...progress import Progress

_REMEDY = (
    "install Pulsar2 and put it on PATH, or say what starts it: "
    '--pulsar2 "docker run --rm -v FOLDER:FOLDER -w FOLDER IMAGE pulsar2"'
)
_TAIL_LINES = 20
_GRACE_S = 10  # a container needs a moment to stop what runs inside it


def find_tool(command: str | None) -> list[str]:
    """Return the words that start Pulsar2; the first is an absolute path.

    Args:
        command: Several words in a shell's quoting, or None for ``pulsar2``.

    Raises:
        ToolchainError: The first word is no program here.
    """
    try:
        words = shlex.split(command or "pulsar2")
    except ValueError as error:
        raise ToolchainError(
            f"the command `{command}` cannot be split into words: {error}",
            hint="close its quotes",
        ) from error
    path = shutil.which(words[0]) if words else None
    if path is None:
        raise ToolchainError(f"`{' '.join(words[:1])}` is not on PATH", hint=_REMEDY)
    return [str(Path(path).absolute()), *words[1:]]


@dataclass(frozen=True)
class Tool:
    """An installed Pulsar2.

    Attributes:
        words: What starts it.
        generation: Name of its language-model builder.
        version: What it says of itself, empty where it says nothing.
    """

    words: tuple[str, ...]
    generation: Generation
    version: tuple[str, ...]

    @classmethod
    def probe(cls, words: Sequence[str], folder: Path) -> Tool:
        """Ask the tool what it is, from inside `folder`.

        Raises:
            ToolchainError: It cannot be started, or has no language-model builder.
        """
        generation = _generation(words, folder)
        said = _asked([*words, "version"], folder).stdout
        version = re.findall(r"^(?:version|commit): *\S+", said, re.MULTILINE)
        return cls(tuple(words), generation, tuple(version))

    def command(self, arguments: Iterable[str], environment: Mapping[str, str]) -> list[str]:
        """Return the whole command; `environment` is handed into a container, which needs that."""
        words = list(self.words)
        if Path(words[0]).name in ("docker", "podman") and "run" in words:
            at = words.index("run") + 1
            words[at:at] = [word for item in environment.items() for word in ("-e", "=".join(item))]
        return [*words, *arguments]


def _generation(words: Sequence[str], folder: Path) -> Generation:
    for name, mark in GENERATIONS.items():
        asked = _asked([*words, name, "-h"], folder)
        # A wrapper may print its general help, with success, for a name it does not know.
        if asked.returncode == 0 and mark in asked.stdout:
            return name
    raise ToolchainError(
        f"`{shlex.join(words)}` has no language-model builder\n"
        f"  tried: {', '.join(f'{name} -h' for name in GENERATIONS)}\n"
        f"  the last said: {asked.stdout.strip()[-300:] or 'nothing'}",
        hint="check that the command starts Pulsar2 3.2 or later",
    )


def _asked(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ToolchainError(f"`{words[0]}` cannot be started: {error}", hint=_REMEDY) from error


def run_logged(
    step: str,
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    progress: Progress,
) -> None:
    """Run a command in `folder`, its lines going to `progress` and into `log` as they come.

    Raises:
        ToolchainError: It ended with another code than 0. Names step, code, log and last lines.
    """
    last: deque[str] = deque(maxlen=_TAIL_LINES)
    with (
        log.open("w", encoding="utf-8", buffering=1) as file,
        _child(words, folder, environment) as child,
    ):
        for line in child.stdout or ():
            file.write(line)
            if text := line.rstrip():
                last.append(text)
                progress.say(text)
        code = child.wait()
    if code:
        raise _failure(step, words, code, log, last)


@contextmanager
def _child(
    words: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Start a process group of its own, and leave nothing of it behind on any way out."""
    with (
        _signals_raise(),
        subprocess.Popen(
            words,
            cwd=folder,
            # The tool is a Python program, which would hold its lines back from a pipe.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child,
    ):
        try:
            yield child
        except BaseException:
            _stop(child)
            raise


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn signals that would end us at once into `SystemExit`, so that the child is stopped too.

    Signals that somebody handles or ignores (``nohup``) stay as they are.
    """
    ours: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        ending = (signal.SIGTERM, signal.SIGHUP)
        ours = [number for number in ending if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _stop(child: subprocess.Popen[str]) -> None:
    _signal_group(child, signal.SIGTERM)
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[str], number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return  # nobody is left


def _failure(
    step: str, words: Sequence[str], code: int, log: Path, last: Iterable[str]
) -> ToolchainError:
    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    lines = "".join(f"\n    {line}" for line in last) or " none"
    hint = "correct the cause and run the same command again: finished steps are kept"
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        hint = f"it was probably killed for want of memory; {hint}"
    return ToolchainError(
        f"build step `{step}` failed: Pulsar2 {ending}\n"
        f"  command: {shlex.join(words)}\n"
        f"  log: {log}\n"
        f"  last lines:{lines}",
        hint=hint,
    )
