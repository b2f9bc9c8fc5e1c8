"""The files in a TAR or ZIP archive; how much it says of itself is bounded before it is read."""

from __future__ import annotations

import bz2
import gzip
import os
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from ..foreign import open_regular
from ..limits import (
    ARCHIVE_BYTES,
    ARCHIVE_DIRECTORY_BYTES,
    ARCHIVE_HEADER_BYTES,
    ARCHIVE_HEADERS_BYTES,
    ARCHIVE_RATIO,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What `members` raises for an archive that is damaged, hostile, or of another kind."""

_NAME_BYTES = 4095  # the longest path of Linux
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_STREAMS: dict[bytes, Callable[[IO[bytes]], Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
_XZ, _ZIP = b"\xfd7zXZ", (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    Attributes:
        name: As the archive spells it, hostile names included.
        size: Bytes that the archive promises.
        read: Returns the bytes from one place to another, fewer where the file ends. To be called
            before the next member is asked for.
        offset: Where the content begins in the archive; None where it is compressed.
    """

    name: str
    size: int
    read: Callable[[int, int], bytes]
    offset: int | None = None


def members(path: Path) -> Iterator[Member]:
    """Yield the regular files of a TAR, compressed by gzip or bzip2 or not, or of a ZIP.

    Links, devices and sparse files are left out. Nothing is unpacked to disk.

    Raises:
        OSError, ValueError, tarfile.TarError: It is no such archive, is damaged, or says more of
            itself than `axcore.limits` allows; see `ERRORS` for further kinds.
    """
    with open_regular(path) as file:
        start = file.read(len(_XZ))
        file.seek(0)
        if start == _XZ:
            raise ValueError("it is compressed by xz, which is not read: unpack it")
        if start.startswith(_ZIP):
            yield from _of_zip(file)
        elif opener := _STREAMS.get(start[:2]):
            most = max(ARCHIVE_BYTES, ARCHIVE_RATIO * os.fstat(file.fileno()).st_size)
            with opener(file) as stream:
                yield from _of_tar(stream, most)
        else:
            yield from _of_tar(file, None)


def _of_tar(file: IO[bytes], most: int | None) -> Iterator[Member]:
    bounded = _Bounded(file, most)
    with _opened_tar(bounded) as tar:
        while member := _next(tar, bounded):
            if member.isreg() and not member.issparse():
                offset, size = member.offset_data, member.size
                read = partial(_read, bounded, offset, size)
                yield Member(member.name, size, read, None if most else offset)


def _opened_tar(file: _Bounded) -> tarfile.TarFile:
    try:
        with file.at_most(ARCHIVE_HEADER_BYTES):
            return tarfile.open(fileobj=file, mode="r:")  # type: ignore[call-overload,no-any-return]
    except tarfile.ReadError as error:
        raise ValueError(f"it is neither a TAR nor a ZIP archive: {error}") from error


def _next(tar: tarfile.TarFile, file: _Bounded) -> tarfile.TarInfo | None:
    with file.at_most(ARCHIVE_HEADER_BYTES):
        member = tar.next()
    if file.headers > ARCHIVE_HEADERS_BYTES:
        raise ValueError(f"its headers have more than {ARCHIVE_HEADERS_BYTES >> 20} MiB")
    # tarfile keeps what it has read of every member, and of all together.
    tar.members.clear()  # type: ignore[attr-defined]
    tar.pax_headers.clear()  # type: ignore[attr-defined]
    if member:
        _check(member.name, member.size)
    return member


def _read(file: _Bounded, offset: int, size: int, start: int, stop: int) -> bytes:
    file.seek(offset + start)
    return file.read(max(0, min(size, stop) - start))


def _of_zip(file: IO[bytes]) -> Iterator[Member]:
    bounded = _Bounded(file, None)
    with bounded.at_most(ARCHIVE_DIRECTORY_BYTES):
        archive = zipfile.ZipFile(bounded)
    with archive:
        for info in archive.infolist():
            if not info.filename.endswith("/"):  # `is_dir` fails for an empty name
                _check(info.filename, info.file_size)
                yield Member(info.filename, info.file_size, partial(_unzipped, archive, info))


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, start: int, stop: int) -> bytes:
    if info.compress_type not in _METHODS:  # of others a file says how much memory they take
        raise ValueError(f"`{info.filename}` is neither stored nor deflated")
    with archive.open(info) as member:
        member.seek(start)
        return member.read(stop - start)


def _check(name: str, size: int) -> None:
    if len(os.fsencode(name)) > _NAME_BYTES or size < 0:
        raise ValueError("a file in it has an impossible name or size")


class _Bounded:
    """A file for tarfile and zipfile, of which no more than is allowed is read.

    Args:
        file: The file.
        end: Where it has to end; None for anywhere.

    Attributes:
        headers: Bytes read so far within `at_most`.
    """

    def __init__(self, file: IO[bytes], end: int | None) -> None:
        self._file, self._end = file, end
        self._left: int | None = None
        self.headers = 0
        self.seekable, self.tell = file.seekable, file.tell

    @contextmanager
    def at_most(self, count: int) -> Iterator[None]:
        """Refuse to read more than `count` bytes within the block."""
        self._left = count
        try:
            yield
        finally:
            self._left = None

    def read(self, count: int = -1) -> bytes:
        if self._left is None:
            return self._file.read(count)
        most = self._left + 1
        data = self._file.read(most if count < 0 else min(count, most))
        self.headers += len(data)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it says more of itself than is read; is it damaged?")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        # Seeking in a compressed file unpacks all that lies before.
        if self._end is not None and offset > self._end:
            raise ValueError(f"it unpacks to more than {self._end >> 20} MiB")
        return self._file.seek(offset, whence)
