"""Paths that a user gave, on the command line or to a function."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UsageError


def given_path(path: object) -> Path:
    """Return a path that a user gave; ``~`` is their home.

    Args:
        path: A string or path.

    Raises:
        UsageError: It is empty, no path at all, or below the home of a user who does not exist.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(name := os.fspath(path), bytes):
        raise UsageError(
            f"{path!r} is no path", hint="give a string or a pathlib.Path of a file or folder"
        )
    if not name or "\0" in name:
        raise UsageError(
            f"{name!r} is no path",
            hint="name a file or folder"
            if name
            else "is a variable empty? `.` is the working folder",
        )
    found = expanded(name)
    if name.startswith("~") and not (found.is_absolute() or os.path.lexists(found)):
        raise UsageError(
            f"{name}: there is no user `{name[1:].partition('/')[0]}`",
            hint="write ./~… for a file of that name",
        )
    return found


def expanded(name: str) -> Path:
    """Return `name` with ``~`` or ``~user`` as a home; a user who does not exist stays as it is."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - that of Path raises RuntimeError
