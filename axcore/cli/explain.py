"""What ends a command, said as fact and remedy: refusals of the system, and wrong command lines."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from ..errors import AxcoreError, BudgetError, UsageError

_PACKAGE = Path(__file__).parent.parent
_LONGEST = 200  # characters of a path in a message

_HINTS = {
    errno.EACCES: "change its permissions, or name another place that you may use",
    errno.EPERM: "change its permissions, or name another place that you may use",
    errno.EROFS: "the disk is mounted read-only: name another place, or copy the folder to one",
    errno.ENOSPC: "free space on its disk, or name another place",
    errno.EDQUOT: "free space of your quota, or name another place",
    errno.EFBIG: "its disk, or `ulimit -f`, allows no file of this size: name another place",
    errno.ENAMETOOLONG: "a name has 255 bytes at most, a whole path 4095: choose a shorter one",
    errno.ELOOP: "it is a link that leads back to itself: remove it, or name another place",
    errno.ENOENT: "check the spelling, and that nothing removes it meanwhile",
    errno.EEXIST: "remove it, or name another place",
    errno.ENOTDIR: "a part of the path is a file, where a folder is expected",
    errno.EISDIR: "it is a folder, where a file is expected",
    errno.EMFILE: "raise the limit of open files, e.g. `ulimit -n 4096`",
    errno.ENFILE: "close other programs: the machine has too many open files",
    errno.EIO: "its disk or network share fails: `dmesg` says more",
}
# What no program can do anything about, even where the system does not say which file it was.
_OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS,
    errno.ENOMEM,
}  # fmt: skip


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the user or the machine can help into an error that says so.

    A bug of ours or of a plugin passes as it is, to keep its traceback.

    Raises:
        UsageError: The command line is wrong.
        BudgetError: There is no memory left.
        AxcoreError: The system refuses a file or folder.
    """
    try:
        yield
    except OSError as error:
        if (explanation := explanation_of(error)) is None:
            raise
        raise explanation from error
    except MemoryError as error:
        raise BudgetError(
            f"the memory is exhausted\n  {error}".rstrip(),
            hint="close other programs, or use a machine with more memory",
        ) from error
    except _REFUSED as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no refusal: it has the help to show
            typer.echo(error, err=True)
            sys.exit(2)
        command = error.ctx.command_path if error.ctx else "axcore"  # type: ignore[attr-defined]
        raise UsageError(
            error.format_message(),  # type: ignore[attr-defined]
            hint=f"`{command} --help` shows arguments and options",
        ) from error


# What typer raises of a wrong command line; it exports only this class derived from it.
_REFUSED: type[Exception] = typer.BadParameter.__base__  # type: ignore[assignment]


def explanation_of(error: OSError) -> AxcoreError | None:
    """Return what a refusal of the system means to a user; None if it is a bug.

    It is one where no file is named, or one of axcore itself.
    """
    why = error.strerror or str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2)
             if isinstance(name, (str, bytes, os.PathLike))]  # fmt: skip
    ours = any(Path(name).is_relative_to(_PACKAGE) for name in names)
    if error.errno is None or ours or not (names or error.errno in _OF_THE_MACHINE):
        return None
    where = " and ".join(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in names)
    hint = _HINTS.get(error.errno, "`--verbose` shows where it happened")
    return AxcoreError(f"{where}: {why}" if names else why, hint=hint)
