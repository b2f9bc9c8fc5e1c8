"""Files: complete or not at all, checksums, and errors of a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BudgetError, BundleError
from .foreign import open_regular, read_json
from .limits import RECORD_BYTES
from .paths import expanded
from .plain import shown

_CHUNK_BYTES = 4 << 20
_READERS = 4  # hashing is slower than reading, and threads hash at the same time
_SCRATCH = ".axcore.????????.partial"  # the pattern of folders in which something is made
_LOCK, _NEW, _OLD = "lock", "new", "old"
_SHA256 = re.compile("[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ELOOP),
    *(errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),  # a file system without locks
    *(errno.ENAMETOOLONG, errno.EILSEQ),  # or without such names
}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
_NO_FILE = {errno.EISDIR, errno.ENXIO}
_OPENED = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OWNER_BYTES = 300
_ELSEWHERE = "choose a place that you may write to with -o"


@dataclass(frozen=True)
class Content:
    """What a file holds: its size in bytes, and its SHA-256 in hexadecimal digits.

    Raises:
        ValueError: No file can hold that.
    """

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"{self.size} is not a size in bytes")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{shown(self.sha256)} is not a SHA-256 in hexadecimal digits")


class Checksums:
    """SHA-256 of files; a file is read again only when it looks changed.

    A file looks changed if its size, inode, or time of modification or of status change differs;
    the last is the kernel's, and no program can set it. One record serves the files of a bundle and
    the checkpoint files that a toolchain reads.

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
            ValueError: It is no regular file.
        """
        looks = _looks(path)
        if (known := self._kept(path, looks)) is None:
            known = self._known[self._name(path)] = [*looks, sha256(path)]
        return Content(known[0], known[-1])

    def of_all(self, paths: Iterable[Path]) -> dict[Path, Content]:
        """Return the content of each file; several are read in parallel."""
        found = list(paths)
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(zip(found, pool.map(self.of, found), strict=True))

    def holds(self, path: Path, content: Content) -> bool:
        """Say whether `path` is a file with that content."""
        try:
            return path.stat().st_size == content.size and self.of(path) == content
        except (OSError, ValueError):
            return False

    def move(self, source: Path, target: Path) -> None:
        """Rename a file and its entry."""
        known = self._kept(source, _looks(source))
        source.replace(target)
        self._known.pop(self._name(source), None)
        if known is not None:  # a rename changes the time of status change, and nothing else
            self._known[self._name(target)] = [*_looks(target), known[-1]]

    def rename(self, source: Path, target: Path) -> None:
        """Rename the entries of the files in a folder that was renamed."""
        before, after = self._name(source), self._name(target)
        for name in list(self._known):
            if name.startswith(f"{before}/"):
                self._known[after + name.removeprefix(before)] = self._known.pop(name)

    def save(self) -> None:
        """Write the record if it has changed."""
        gone = [name for name in self._known if not self._path(name).exists()]
        for name in gone:
            del self._known[name]
        # On a read-only disk files are simply read again the next time.
        with contextlib.suppress(OSError):
            if self._known != self._saved and not self._record.parent.is_symlink():
                write_atomic(self._record, json.dumps(self._known), durable=False)
                self._saved = dict(self._known)

    def _kept(self, path: Path, looks: tuple[int, ...]) -> list[Any] | None:
        known = self._known.get(self._name(path))
        return known if known is not None and tuple(known[:-1]) == looks else None

    def _name(self, path: Path) -> str:
        """Return a name that stays when the folder of the record is moved."""
        return os.path.relpath(path, self._record.parent)

    def _path(self, name: str) -> Path:
        # Normalised, for the folder of the record may not be there yet.
        return Path(os.path.normpath(self._record.parent / name))


def _looks(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read_record(path: Path) -> dict[str, list[Any]]:
    try:
        known = read_json(path, RECORD_BYTES)
        return {name: entry for name, entry in known.items() if _is_entry(entry)}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or [*map(type, entry)] != [int, int, int, int, str]:
        return False
    return entry[0] >= 0 and bool(_SHA256.fullmatch(entry[-1]))


def cache_folder(name: str) -> Path:
    """Return the folder for what can be made or fetched again; ``AXCORE_CACHE`` moves it."""
    from platformdirs import user_cache_path

    root = os.environ.get("AXCORE_CACHE")
    return (expanded(root) if root else user_cache_path("axcore")) / name


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a regular file, read in chunks.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open_regular(path) as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:count])
    return digest.hexdigest()


def lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, made when absent; the lock ends when the descriptor is closed, or the process.

    So whether its owner lives is known without a process id, which in containers is often equal.

    Args:
        path: The file.
        shared: Whether it is one for all users, whoever made it; it may then be open for reading
            alone.

    Returns:
        The open descriptor; None where another process holds the lock.

    Raises:
        OSError: It is a link, cannot be written, or its file system has no locks.
    """
    import fcntl

    descriptor = _open_shared(path) if shared else os.open(path, _OPENED | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return descriptor


def _open_shared(path: Path) -> int:
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, _OPENED | os.O_CREAT | os.O_EXCL, 0o666)
        os.fchmod(descriptor, 0o666)  # whatever the umask says
        return descriptor
    # Without O_CREAT: in a folder with the sticky bit it is refused for the files of others.
    try:
        return os.open(path, _OPENED)
    except PermissionError:
        return os.open(path, _OPENED & ~os.O_RDWR)


def sign(descriptor: int) -> None:
    """Write into a locked file who holds it; see `owner_of`."""
    with contextlib.suppress(OSError):  # it may be open for reading alone
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)


def owner_of(path: Path) -> str:
    """Return what the process that holds a lock wrote into its file."""
    try:
        with open_regular(path) as file:
            return ascii(file.read(_OWNER_BYTES).decode())[1:-1] or "unknown"
    except (OSError, ValueError):
        return "unknown"


@contextmanager
def appearing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or folder that becomes `path` when it is complete.

    `path` is replaced when the block ends without an exception; otherwise it stays as it was and
    the temporary file or folder is removed. What killed processes left in the same folder is
    removed first.

    Args:
        path: What appears.
        durable: Whether it has to outlive a loss of power from then on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    scratch, held = _scratch(path.parent)
    partial, replaced = scratch / _NEW, scratch / _OLD / path.name
    try:
        yield partial
        if durable:
            _sync_all(partial)
        if partial.is_dir() and path.is_dir() and not path.is_symlink():
            replaced.parent.mkdir()
            path.rename(replaced)  # a folder that is not empty cannot be replaced in one step
        partial.replace(path)
        if durable:
            sync(path.parent)
    finally:
        _discard(scratch)
        os.close(held)


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` so that `path` holds either its old or its new content; see `appearing`."""
    with appearing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def clear_leftovers(folder: Path) -> None:
    """Remove from a folder what `appearing` left there in processes that were killed."""
    for scratch in list(folder.glob(_SCRATCH)):
        try:
            held = None if scratch.is_symlink() else lock(scratch / _LOCK)
        except OSError:  # another user's, or just gone
            continue
        if held is not None:
            _discard(scratch)
            os.close(held)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot do it for folders
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _sync_all(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    if not path.is_dir():
        sync(path)


def _scratch(folder: Path) -> tuple[Path, int]:
    """Make a folder for one `appearing`; return it and its lock."""
    prefix, suffix = _SCRATCH.split("????????")
    while True:
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=prefix, suffix=suffix))
        # Until it is locked, it looks like a leftover to others, who may just be removing it.
        with contextlib.suppress(FileNotFoundError):
            held = lock(scratch / _LOCK)
            if held is not None:
                if (scratch / _LOCK).exists():
                    return scratch, held
                os.close(held)


def _discard(scratch: Path) -> None:
    """Remove a scratch folder; what it had replaced comes back where nothing is in its place."""
    old = scratch / _OLD
    for replaced in list(old.iterdir()) if old.is_dir() and not old.is_symlink() else ():
        if not os.path.lexists(place := scratch.parent / replaced.name):
            replaced.rename(place)
    shutil.rmtree(scratch, ignore_errors=True)


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
