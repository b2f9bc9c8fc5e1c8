"""Finding ``atc``, asking CANN what it is, and running it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from axcore import ToolchainError
from axcore.process import child, ending, short_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from axcore import Progress

_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
_SOURCE = "source the set_env.sh of CANN, e.g. /usr/local/Ascend/ascend-toolkit/set_env.sh"
_REMEDY = (
    f"install the CANN toolkit and {_SOURCE}; or say what starts atc: "
    '--tool "docker run --rm -v FOLDER:FOLDER -w FOLDER IMAGE atc"; or copy the bundle to a '
    "machine that has it and run build_ascend.sh there"
)
_TAIL_LINES = 20


@dataclass(frozen=True)
class Tool:
    """An installed ``atc``.

    Attributes:
        words: What starts it; the first is an absolute path.
        version: Of CANN, empty where it says nothing of itself.
    """

    words: tuple[str, ...]
    version: tuple[str, ...]

    @classmethod
    def find(cls, command: str | None) -> Tool:
        """Look for ``atc``, or for what `command` names in a shell's quoting.

        Raises:
            ToolchainError: It is no program here, or ``atc`` lacks the environment it needs.
        """
        try:
            words = shlex.split(command or "atc")
        except ValueError as error:
            raise ToolchainError(
                f"the command `{command}` cannot be split into words: {error}",
                hint="close its quotes",
            ) from error
        path = shutil.which(words[0]) if words else None
        if path is None:
            raise ToolchainError(f"`{' '.join(words[:1])}` is not on PATH", hint=_REMEDY)
        home = cann_home()
        # A container brings an environment of its own.
        if home is None and command is None:
            raise ToolchainError(
                f"{path} is here, but {' and '.join(_HOMES)} are not set", hint=_SOURCE
            )
        return cls((str(Path(path).absolute()), *words[1:]), _version(home) if home else ())

    def run(
        self, step: str, words: Sequence[str], folder: Path, log: Path, progress: Progress
    ) -> None:
        """Run a command in `folder`, its lines going to `progress` and into `log` as they come.

        Raises:
            ToolchainError: It cannot start, or ended with another code than 0. Names step, code,
                log and last lines.
        """
        last: deque[str] = deque(maxlen=_TAIL_LINES)
        try:
            with (
                log.open("w", encoding="utf-8", buffering=1) as file,
                child(words, folder, {}) as process,
            ):
                for line in process.stdout or ():
                    file.write(line)
                    if text := line.rstrip():
                        last.append(text)
                        progress.say(text)
                code = process.wait()
        except OSError as error:
            raise ToolchainError(
                f"`{words[0]}` cannot be started: {error}", hint=_REMEDY
            ) from error
        if code:
            raise _failure(step, words, code, log, last)


def cann_home() -> Path | None:
    """Return the folder of the CANN toolkit whose environment is set."""
    return next((Path(os.environ[name]) for name in _HOMES if os.environ.get(name)), None)


def _version(home: Path) -> tuple[str, ...]:
    for path in sorted(home.glob("*-linux/ascend_toolkit_install.info")):
        if found := re.search(r"^version=(\S+)", path.read_text(errors="replace"), re.MULTILINE):
            return (f"CANN {found[1]}",)
    return ()


def _failure(
    step: str, words: Sequence[str], code: int, log: Path, last: Sequence[str]
) -> ToolchainError:
    lines = "".join(f"\n    {line}" for line in last) or " none"
    hint = (
        "correct the cause and run the same command again: finished steps are kept; from CANN 8.5 "
        "on the operator package of the card must be installed as well"
    )
    if short_of_memory(code):
        hint = f"it was probably killed for want of memory; {hint}"
    return ToolchainError(
        f"build step `{step}` failed: atc {ending(code)}\n"
        f"  command: {shlex.join(words)}\n"
        f"  log: {log}\n"
        f"  last lines:{lines}",
        hint=hint,
    )
