"""Reading what others wrote: checkpoints, bundles that were sent, results of tools.

Nothing in such a file is trusted. It is a regular file of bounded size, a name in it stays inside
its folder, and its values have the types that are expected.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from .errors import AxcoreError
from .limits import CONTAINERS, NESTING, VALUES
from .plain import parse, shown

T = TypeVar("T")


def inside(root: Path, name: str) -> Path:
    """Return ``root / name`` for a name that was read from a file.

    Args:
        root: A folder; it may itself be a link.
        name: Relative, with ``/`` between its parts.

    Raises:
        ValueError: The name is empty, absolute, or leads out of `root`, by ``..`` or by a link.
    """
    check_name(name)
    path = root / name
    # Not Path.resolve, which fails on links that lead to each other.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"{shown(name)} is a link that leads out of {root}")
    return path


def own_folder(root: Path, name: str) -> Path:
    """Return the folder ``root / name``, made when absent, for files that are ours to replace.

    Raises:
        OSError: It cannot be made.
        ValueError: As `inside`; or a part of it is a link, or something else than a folder.
    """
    path = inside(root, name)
    for part in [path, *path.parents][: len(name.split("/"))]:
        if part.is_symlink() or (part.exists() and not part.is_dir()):
            raise ValueError(f"{part} is a link or a file, not a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_name(name: str) -> None:
    """Refuse a name that is no plain path below some folder; see `inside`.

    Raises:
        ValueError: It is empty, absolute, too long, or has a part such as ``..``.
    """
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and "\0" not in name
    if not plain or PurePosixPath(name).is_absolute() or len(os.fsencode(name)) > _NAME_BYTES:
        raise ValueError(f"{shown(name)} is not a name of a file below the folder")


_NAME_BYTES = 4095  # the longest path of Linux


def open_regular(path: Path, limit: int | None = None) -> IO[bytes]:
    """Open a regular file for reading; a pipe or device is refused without waiting for it.

    Args:
        path: The file, or a link to it.
        limit: Most bytes that it may have.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no regular file, or larger than `limit`.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe or device, not a regular file")
        if limit is not None and status.st_size > limit:
            raise ValueError(f"it has {status.st_size} bytes; at most {limit} are read")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; raises as `open_regular`."""
    with open_regular(path, limit) as file:
        content = file.read(limit + 1)  # it may have grown since it was opened
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return content


def read_json(path: Path, limit: int) -> Any:
    """Return the content of a JSON file of at most `limit` bytes.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no regular file, too large, no JSON, or nested too deeply.
    """
    return decode_json(read_bytes(path, limit))


def decode_json(content: bytes | str, *, unique: bool = False) -> Any:
    """Return what a JSON text says.

    Args:
        content: The text.
        unique: Refuse objects in which a name appears twice; else the last one counts.

    Raises:
        ValueError: It is no JSON in UTF-8, nested deeper than `NESTING`, or holds more than
            `CONTAINERS` objects and lists or than `VALUES` values.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    # In memory, an empty list takes thirty times as much as in the file.
    if text.count("[") + text.count("{") > CONTAINERS:
        raise ValueError(f"it holds more than {CONTAINERS} objects and lists")
    if text.count(",") > VALUES:
        raise ValueError(f"it holds more than {VALUES} values")
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {NESTING}") from None
    _check_nesting(value)
    return value


def load(kind: type[T], path: Path, limit: int, error: type[AxcoreError], *, hint: str) -> T:
    """Return a JSON file as an instance of the dataclass `kind`.

    Args:
        kind: See `axcore.plain.parse`.
        path: The file.
        limit: Most bytes that it may have.
        error: What to raise.
        hint: The remedy.

    Raises:
        AxcoreError: As `error`: the file cannot be read, or a value in it has another type than
            `kind` says. The message names the file, the path in it, and what was expected.
    """
    try:
        return parse(kind, read_json(path, limit))
    except (OSError, ValueError) as cause:
        raise error(f"{path} cannot be used: {reason(cause)}", hint=hint) from cause


def reason(error: OSError | ValueError) -> str:
    """Return why a file could not be read, without repeating its name."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{shown(name)} appears twice")
        result[name] = value
    return result


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(NESTING):
        level = [
            item
            for holder in level
            if isinstance(holder, (dict, list))
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {NESTING}")
