"""An existing calibration archive, local or downloaded, used unchanged."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from ..errors import DownloadError, ImageError
from ..files import appearing, cache_folder, sha256
from ..limits import ARCHIVE_DOWNLOAD_BYTES
from ..paths import expanded
from .members import ERRORS, members

if TYPE_CHECKING:
    from ..component import CalibrationFormat
    from ..progress import Progress

SUFFIXES = (".tar", ".tar.gz", ".zip")
TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 20
_IMAGES = (".jpg", ".jpeg", ".png")
_SAMPLES: Mapping[CalibrationFormat, tuple[str, ...]] = {
    "Image": _IMAGES,
    "Numpy": (".npy",),
    "NumpyObject": (".npy",),
}
_HINT = "give a TAR or ZIP archive of what the graph is calibrated with, or images by --images"


@dataclass(frozen=True)
class Archive:
    """An archive of calibration samples.

    Attributes:
        path: The local file.
        source: The file name or URL that the user gave.
        sha256: Hexadecimal digest of the content.
        members: Names of the files in it.
    """

    path: Path
    source: str
    sha256: str
    members: tuple[str, ...]

    def samples(self, form: CalibrationFormat) -> int:
        """Count the samples of a format, by the suffixes of the file names.

        Raises:
            ImageError: The archive has no sample of that format.
        """
        count = sum(name.lower().endswith(_SAMPLES[form]) for name in self.members)
        if not count:
            raise ImageError(
                f"`{self.source}` holds no {' or '.join(_SAMPLES[form])} file, which calibration"
                f" of format {form} takes\n  found: {', '.join(self.members[:3]) or 'nothing'}",
                hint=_HINT,
            )
        return count


def find_archive(source: str, progress: Progress) -> Archive:
    """Find an archive; download it if `source` is a URL.

    Downloads are kept in axcore's cache. Nothing is unpacked.

    Raises:
        ImageError: There is no such file, or it is not an archive.
        DownloadError: The download failed.
    """
    remote = source.startswith(("http://", "https://"))
    try:
        name = PurePosixPath(unquote(urlsplit(source).path)).name if remote else Path(source).name
    except ValueError as error:
        raise ImageError(f"`{source}` is no URL: {error}", hint=_HINT) from error
    if not name.endswith(SUFFIXES):
        raise ImageError(
            f"`{source}` does not end in {', '.join(SUFFIXES)}, which toolchains read",
            hint=_HINT,
        )
    try:
        path = _fetched(source, name, progress) if remote else expanded(source)
        names = tuple(member.name for member in members(path))
        return Archive(path, source, sha256(path), names)
    except ERRORS as error:
        raise ImageError(f"`{source}` cannot be read\n  {error}", hint=_HINT) from error


def _fetched(url: str, name: str, progress: Progress) -> Path:
    """Return the cached archive, downloading it first if needed; no partial file is left."""
    target = cache_folder("archives") / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    try:
        if not target.is_file():
            with appearing(target) as partial:
                _download(url, partial, progress)
        return target
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # an HTTPError is also the response, and holds the connection
        raise DownloadError(
            f"`{url}` cannot be fetched: {error}", hint=_remedy(error, name)
        ) from error


def _remedy(error: Exception, name: str) -> str:
    """Return what helps: the disk and the network fail with errors of one class."""
    elsewhere = f"fetch it elsewhere and give the file: --calibration-archive {name}"
    if isinstance(error, OSError) and not isinstance(error, URLError) and error.filename:
        return f"set AXCORE_CACHE to a folder that you may write to, or {elsewhere}"
    return f"check the address and the network, or {elsewhere}"


def _download(url: str, target: Path, progress: Progress) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310  (http alone)
        promised = int(response.headers.get("Content-Length") or 0)
        received = 0
        with target.open("wb") as file, progress.task(f"fetch {url}", promised, "B") as task:
            while chunk := response.read(_CHUNK_BYTES):
                received += file.write(chunk)
                task.advance(len(chunk))
                if received > (promised or ARCHIVE_DOWNLOAD_BYTES):
                    raise ValueError(f"it has more than {received} bytes")
    if promised and received != promised:
        raise OSError(f"{received} of {promised} bytes received")
