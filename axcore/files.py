"""Files: complete or not at all, checksums, and errors of a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BudgetError, BundleError
from .paths import expanded

_CHUNK_BYTES = 4 << 20
_READERS = 4  # hashing is slower than reading, and threads hash at the same time
_PARTIAL, _REPLACED = ".partial", ".replaced"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
_NO_FILE = {errno.EISDIR, errno.ENXIO}
_ELSEWHERE = "choose a place that you may write to with -o"


@dataclass(frozen=True)
class Content:
    """What a file holds: its size in bytes, and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


class Checksums:
    """SHA-256 of files; a file is read again only when it looks changed.

    A file looks changed if its size, inode or modification time differs. One record serves the
    files of a bundle and the checkpoint files that a toolchain reads.

    Args:
        record: JSON file with known checksums. If it is missing or damaged, files are read again.
    """

    def __init__(self, record: Path) -> None:
        self._record = record
        self._known = _read_record(record)
        self._saved = dict(self._known)

    def of(self, path: Path) -> Content:
        """Return the content of `path`.

        Raises:
            OSError: It cannot be read.
        """
        name, stat = self._name(path), path.stat()
        looks = (stat.st_size, stat.st_ino, stat.st_mtime_ns)
        known = self._known.get(name)
        if known is None or tuple(known[:3]) != looks:
            known = self._known[name] = [*looks, sha256(path)]
        return Content(known[0], known[3])

    def of_all(self, paths: Iterable[Path]) -> dict[Path, Content]:
        """Return the content of each file; several are read in parallel."""
        found = list(paths)
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(zip(found, pool.map(self.of, found), strict=True))

    def holds(self, path: Path, content: Content) -> bool:
        """Say whether `path` is a file with that content."""
        try:
            return path.stat().st_size == content.size and self.of(path) == content
        except OSError:
            return False

    def move(self, source: Path, target: Path) -> None:
        """Rename a file and its entry."""
        source.replace(target)
        self.rename(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Rename the entries of a file or folder that was renamed."""
        before, after = self._name(source), self._name(target)
        for name in list(self._known):
            if name == before or name.startswith(f"{before}/"):
                self._known[after + name.removeprefix(before)] = self._known.pop(name)

    def save(self) -> None:
        """Write the record if it has changed."""
        gone = [name for name in self._known if not self._path(name).exists()]
        for name in gone:
            del self._known[name]
        # On a read-only disk files are simply read again the next time.
        with contextlib.suppress(OSError):
            if self._known != self._saved:
                write_atomic(self._record, json.dumps(self._known))
                self._saved = dict(self._known)

    def _name(self, path: Path) -> str:
        """Return a name that stays when the folder of the record is moved."""
        return os.path.relpath(path, self._record.parent)

    def _path(self, name: str) -> Path:
        # Normalised, for the folder of the record may not be there yet.
        return Path(os.path.normpath(self._record.parent / name))


def _read_record(path: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(path.read_bytes())
        shapes = {name: [*map(type, entry)] for name, entry in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {name: known[name] for name, shape in shapes.items() if shape == [int, int, int, str]}


def cache_folder(name: str) -> Path:
    """Return the folder for what can be made or fetched again; ``AXCORE_CACHE`` moves it."""
    from platformdirs import user_cache_path

    root = os.environ.get("AXCORE_CACHE")
    return (expanded(root) if root else user_cache_path("axcore")) / name


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder that becomes `path` when it is complete.

    `path` is replaced when the block ends without an exception; otherwise it stays as it was and
    the temporary file or folder is removed. Leftovers of processes that were killed are removed
    first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    stem = f".{path.name}.{os.getpid()}"
    partial, replaced = path.with_name(stem + _PARTIAL), path.with_name(stem + _REPLACED)
    try:
        yield partial
        if partial.is_dir() and path.is_dir() and not path.is_symlink():
            path.rename(replaced)  # a folder that is not empty cannot be replaced in one step
        partial.replace(path)
    finally:
        _remove(partial)
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        _remove(replaced)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old or its new content."""
    with appearing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _clear_leftovers(path: Path) -> None:
    """Remove leftovers of processes that were killed while they wrote `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)({_PARTIAL}|{_REPLACED})")
    for other in list(path.parent.iterdir()):
        match = pattern.fullmatch(other.name)
        if not match or _is_another_running(int(match[1])):
            continue
        if match[2] == _REPLACED and not path.exists():
            other.rename(path)  # killed before the new folder was in place
        else:
            _remove(other)


def _is_another_running(process: int) -> bool:
    """Say whether a process runs that is not this one."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs, and is another user's
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
