"""Finding Pulsar2, asking it what it is, and running it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ToolchainError
from ...process import child, ending, short_of_memory
from .commands import GENERATIONS, Generation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...progress import Progress

_REMEDY = (
    "install Pulsar2 and put it on PATH, or say what starts it: "
    '--pulsar2 "docker run --rm -v FOLDER:FOLDER -w FOLDER IMAGE pulsar2"'
)
_TAIL_LINES = 20


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
        child(words, folder, environment) as tool,
    ):
        for line in tool.stdout or ():
            file.write(line)
            if text := line.rstrip():
                last.append(text)
                progress.say(text)
        code = tool.wait()
    if code:
        raise _failure(step, words, code, log, last)


def _failure(
    step: str, words: Sequence[str], code: int, log: Path, last: Iterable[str]
) -> ToolchainError:
    lines = "".join(f"\n    {line}" for line in last) or " none"
    hint = "correct the cause and run the same command again: finished steps are kept"
    if short_of_memory(code):
        hint = f"it was probably killed for want of memory; {hint}"
    return ToolchainError(
        f"build step `{step}` failed: Pulsar2 {ending(code)}\n"
        f"  command: {shlex.join(words)}\n"
        f"  log: {log}\n"
        f"  last lines:{lines}",
        hint=hint,
    )
