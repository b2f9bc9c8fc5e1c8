"""Files: atomic writes, content stamps, and errors of a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import BudgetError, BundleError

_CHUNK_BYTES = 4 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
_NO_FILE = {errno.EISDIR, errno.ENXIO}
_ELSEWHERE = "choose a place that you may write to with -o"


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

    def is_of(self, path: Path) -> bool:
        """Whether `path` looks as it did then: it has the same size and time."""
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns)

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
def explained_full_disk(folder: Path, kept: str = "") -> Iterator[None]:
    """Turn a disk that is full, and a place that takes no files, into errors for people.

    Args:
        folder: Where is written.
        kept: What a second run finds done.

    Raises:
        BudgetError: The disk, a quota or the largest size of a file is reached.
        BundleError: No file can be made there, or the one that is to be written cannot be.
    """
    try:
        yield
    except OSError as error:
        written = _written(error, folder)
        if error.errno in _NO_FOLDER and (obstacle := _obstacle(folder)):
            raise BundleError(
                f"no file can be made in {folder}: {obstacle}", hint=_ELSEWHERE
            ) from error
        if error.errno in _FORBIDDEN or (error.errno in _NO_FILE and written.parent == folder):
            raise BundleError(
                f"cannot write {written}: {error.strerror}", hint=_ELSEWHERE
            ) from error
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise BudgetError(
            f"cannot write {written}: {error.strerror}\n  free on that disk: {free / 1e9:.1f} GB",
            hint="make room and run the same command again" + (kept and f"; {kept} are kept"),
        ) from error


def check_writable_file(path: Path) -> None:
    """Refuse a place where no file can be written; makes the folders above it.

    For what is written after long work.

    Raises:
        BundleError: It is a folder, or no file can be made beside it.
    """
    with explained_full_disk(path.parent):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        _try_file(path.parent)


def _written(error: OSError, folder: Path) -> Path:
    """Return what was to be written: of two files the second one."""
    name = error.filename2 or error.filename
    return Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else folder


def _obstacle(folder: Path) -> str:
    """Say why `folder` takes no file; nothing if it does, and the fault is ours."""
    try:
        for place in (folder, *folder.absolute().parents):
            if os.path.lexists(place) and not place.is_dir():
                return f"{place} is no folder"
        _try_file(folder)
    except OSError as error:
        return str(error.strerror)
    return ""


def _try_file(folder: Path) -> None:
    """Make a file that has no name and is gone at once."""
    tempfile.TemporaryFile(dir=folder).close()
