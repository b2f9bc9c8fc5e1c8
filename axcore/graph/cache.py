"""Traced graphs in the user's cache, so that a second model of the same shape traces nothing.

A file for each, named after its key; it begins with a checksum of key and content. What cannot be
read or written is no error: the graph is traced again.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ..files import appearing, cache_folder
from ..foreign import own_folder, read_bytes
from ..limits import GRAPH_BYTES, GRAPHS_BYTES

if TYPE_CHECKING:
    from pathlib import Path

SWITCH = "AXCORE_DISABLE_GRAPH_CACHE"
"""Environment variable: if set, the cache is neither read nor written."""

_SUFFIX = ".graph"
_LEAST_BYTES = 64 << 10  # what an entry counts at least, so that there are not too many
_CHECKSUM_BYTES = hashlib.sha256().digest_size


def read(key: str) -> bytes | None:
    """Return what was written under `key`; None where there is nothing, or it is damaged."""
    if os.environ.get(SWITCH):
        return None
    with suppress(OSError, ValueError):
        path = _path(key)
        entry = read_bytes(path, GRAPH_BYTES + _CHECKSUM_BYTES)
        content = entry[_CHECKSUM_BYTES:]
        if entry[:_CHECKSUM_BYTES] == _checksum(key, content):
            os.utime(path)  # what is used stays longest
            return content
    return None


def write(key: str, content: bytes) -> None:
    """Keep `content` under `key`, and remove what was not used for longest beyond the bound."""
    if os.environ.get(SWITCH) or len(content) > GRAPH_BYTES:
        return
    with suppress(OSError, ValueError):
        path = _path(key)
        with appearing(path) as temporary:
            temporary.write_bytes(_checksum(key, content) + content)
        _trim(path.parent)


def remove(key: str) -> None:
    """Remove what is kept under `key`."""
    with suppress(OSError, ValueError):
        _path(key).unlink(missing_ok=True)


def _path(key: str) -> Path:
    root = cache_folder("")
    root.mkdir(parents=True, exist_ok=True)
    return own_folder(root, "graphs") / f"{key}{_SUFFIX}"


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


def _trim(folder: Path) -> None:
    entries = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another process may just have removed it
            status = path.lstat()
            entries.append((status.st_mtime_ns, status.st_size, path))
    left = GRAPHS_BYTES
    for _, size, path in sorted(entries, reverse=True):
        left -= max(size, _LEAST_BYTES)
        if left < 0:
            path.unlink(missing_ok=True)
