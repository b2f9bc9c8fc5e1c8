"""Files: atomic writes, content stamps, and errors of a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import BudgetError, BundleError

_CHUNK_BYTES = 4 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Stamp:
    """Identity of a file's content: size and sha256, and when that was last seen to hold."""

    size: int
    sha256: str
    mtime_ns: int = 0

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Read `path` once."""
        stat = path.stat()
        return cls(stat.st_size, sha256(path), stat.st_mtime_ns)

    def holds(self, path: Path) -> bool:
        """Whether `path` has this content; reads it only when its time has changed."""
        try:
            stat = path.stat()
        except OSError:
            return False
        if stat.st_size != self.size:
            return False
        return stat.st_mtime_ns == self.mtime_ns or sha256(path) == self.sha256


def cache_folder(name: str) -> Path:
    """Return the folder for what can be made or fetched again; ``AXCORE_CACHE`` moves it."""
    from platformdirs import user_cache_path

    root = os.environ.get("AXCORE_CACHE")
    return (Path(root) if root else user_cache_path("axcore")) / name


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old or its new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset` of an open file."""
    while len(data):
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


@contextmanager
def explained_full_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk, quota or file-size limit into a `BudgetError`.

    A folder that may not be written to becomes a `BundleError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FORBIDDEN:
            raise BundleError(
                f"cannot write {error.filename or folder}: {error.strerror}",
                hint="choose a folder that you may write to with -o",
            ) from error
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise BudgetError(
            f"cannot write {error.filename or folder}: {error.strerror}\n"
            f"  free on that disk: {free / 1e9:.1f} GB",
            hint="make room and run the same command again; finished steps are kept",
        ) from error
