"""Find images in folders and archives, read them as RGB, refuse those unfit for calibration."""

from __future__ import annotations

import hashlib
import math
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from .parallel import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from ..progress import Progress

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

MAX_IMAGE_BYTES = 128 << 20  # encoded
MAX_ARCHIVE_BYTES = 256 << 20  # of a compressed archive, unpacked: its images stay in memory
MAX_PIXELS = 100_000_000  # 300 MB as RGB
LISTED = 20  # bad images named in one message

SOLID_DEVIATION = 2.0  # of 255, in the most varied channel; the dullest of 40 images had 10
# Between neighbouring pixels: white noise has at most 0.41 (weak, smoothed by JPEG), photographs
# have 0.69 (grass) and more.
NOISE_CORRELATION = 0.5
SAMPLED_ROWS = 256  # pairs of adjacent rows that the check of an image looks at


@dataclass(frozen=True)
class SourceImage:
    """One JPEG, PNG or WebP image, read on demand.

    Attributes:
        name: Path of the file, or of the archive and the member in it.
        read: Returns the encoded bytes; may be called from any thread.
    """

    name: str
    read: Callable[[], bytes]

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the encoded bytes; read once, then cached."""
        return hashlib.sha256(self.read()).hexdigest()

    def load(self, *, upright: bool = True) -> Image:
        """Decode the image.

        Args:
            upright: Apply the EXIF orientation.

        Returns:
            An RGB image; transparency is blended with white, 16-bit gray is cut to the high byte.

        Raises:
            ImageError: It cannot be decoded, or is too large.
        """
        try:
            return _decode(self.read(), upright)
        except Exception as error:  # decoders raise many kinds on damaged bytes
            raise ImageError(
                f"`{self.name}` cannot be read as an image\n  {error}",
                hint="replace the file, or leave it out",
            ) from error


def read_image(source: Image | str | Path) -> Image:
    """Return an image as RGB and upright, see `SourceImage.load`.

    Args:
        source: A JPEG, PNG or WebP file, or an image, which is assumed to be upright.

    Raises:
        ImageError: The file cannot be read.
    """
    from PIL.Image import Image as PillowImage

    if isinstance(source, PillowImage):
        return _to_rgb(source)
    return SourceImage(str(source), partial(_read, Path(source))).load()


def embedded_images() -> list[Path]:
    """Return the photographs that come with the package (`LICENSES.md` beside them)."""
    folder = Path(str(resources.files("axcore") / "data" / "images"))
    return sorted(folder.glob("*.jpg"))


# Find --------------------------------------------------------------------------------------------


def find_images(sources: Sequence[Path]) -> list[SourceImage]:
    """Return the images in folders (with everything below them), archives and files.

    Images are recognised by content, not by name; other files in folders and archives are
    ignored. Archives (TAR, compressed or not, and ZIP) are never unpacked to disk.

    Args:
        sources: Folders, archives or images.

    Returns:
        In natural order of their names: ``img2`` before ``img10``.

    Raises:
        ImageError: A source is missing, holds no image, or unpacks to more than
            `MAX_ARCHIVE_BYTES`.
    """
    found = [image for source in sources for image in _images_of(source)]
    return sorted(found, key=lambda image: _natural(image.name))


def _images_of(source: Path) -> list[SourceImage]:
    hint = "give JPEG, PNG or WebP files, a folder of them, or a TAR or ZIP archive"
    try:
        found = list(_walk(source))
    except (OSError, EOFError, RuntimeError, tarfile.TarError, *_ZIP_ERRORS) as error:
        raise ImageError(f"`{source}` cannot be read\n  {error}", hint=hint) from error
    if not found:
        raise ImageError(f"`{source}` holds no JPEG, PNG or WebP image", hint=hint)
    return found


_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)


def _walk(source: Path) -> Iterator[SourceImage]:
    if source.is_dir():
        for path in source.rglob("*"):
            if path.is_file() and _kind(_read(path, size=16)):
                yield SourceImage(str(path), partial(_read, path))
    elif _kind(_read(source, size=16)):
        yield SourceImage(str(source), partial(_read, source))
    # Before compressed archives, because these images can be read in place.
    elif _is_plain_tar(source):
        yield from _stored_in(source)
    elif tarfile.is_tarfile(source):
        yield from _kept(source, _tar_members(source))
    elif zipfile.is_zipfile(source):
        yield from _kept(source, _zip_members(source))


def _is_plain_tar(path: Path) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except tarfile.ReadError:
        return False
    return True


def _stored_in(archive: Path) -> Iterator[SourceImage]:
    """Yield the images of an uncompressed TAR: each is a range of the file."""
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                read = partial(_read, archive, member.offset_data)
                if _kind(read(min(member.size, 16))):
                    yield SourceImage(f"{archive}/{member.name}", partial(read, member.size))


def _kept(archive: Path, members: Iterable[tuple[str, bytes]]) -> Iterator[SourceImage]:
    """Yield the images of a compressed archive, kept in memory as seeking is slow."""
    unpacked = 0
    for name, data in members:
        unpacked += len(data)
        if unpacked > MAX_ARCHIVE_BYTES:
            raise ImageError(
                f"`{archive}` unpacks to more than {MAX_ARCHIVE_BYTES >> 20} MiB",
                hint="unpack it and give the folder, or give an uncompressed TAR",
            )
        if _kind(data):
            yield SourceImage(f"{archive}/{name}", partial(bytes, data))


def _tar_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isreg() and (file := tar.extractfile(member)):
                yield member.name, file.read(MAX_ARCHIVE_BYTES + 1)


def _zip_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as members:
        for info in members.infolist():
            with members.open(info) as file:
                yield info.filename, file.read(MAX_ARCHIVE_BYTES + 1)


def _read(path: Path, offset: int = 0, size: int = MAX_IMAGE_BYTES + 1) -> bytes:
    # One byte more than allowed is enough to see that a file is too large.
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(min(size, MAX_IMAGE_BYTES + 1))


def _natural(name: str) -> list[tuple[list[str | int], str]]:
    """Return a sort key that compares path by path and numbers as numbers."""
    return [
        ([int(text) if text.isdecimal() else text for text in re.split("([0-9]+)", part)], part)
        for part in Path(name).parts
    ]


# Decode ------------------------------------------------------------------------------------------


def _kind(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _decode(data: bytes, upright: bool) -> Image:
    from PIL import ImageOps

    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"the file has more than {MAX_IMAGE_BYTES >> 20} MiB")
    with _open(data) as image:
        if math.prod(image.size) > MAX_PIXELS:
            width, height = image.size
            raise ValueError(f"{width} x {height} are more than {MAX_PIXELS} pixels")
        return _to_rgb(ImageOps.exif_transpose(image) if upright else image)


def _open(data: bytes) -> ImageFile:
    # Not Image.open, which only warns about huge images; they must be refused.
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    decoders: dict[str, Callable[[BytesIO], ImageFile]]
    decoders = {"JPEG": JpegImageFile, "PNG": PngImageFile, "WebP": WebPImageFile}
    if (kind := _kind(data)) not in decoders:
        raise ValueError("the content is neither JPEG, PNG nor WebP")
    return decoders[kind](BytesIO(data))


def _to_rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image as PillowImage

    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
        return PillowImage.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = PillowImage.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")


# Check -------------------------------------------------------------------------------------------


def check_images(images: Sequence[SourceImage], minimum: int, progress: Progress) -> None:
    """Refuse images that are unfit for calibration, all in one message.

    An image is refused when it cannot be read, has the same pixels as one before it, is of one
    colour, or is noise (its neighbouring pixels do not correlate). Each image is decoded once, in
    parallel, and released.

    Args:
        images: What `find_images` found.
        minimum: Fewer images than this cause a warning.
        progress: Where to report.

    Raises:
        ImageError: There is no image, or some are refused (the message names them).
    """
    if not images:
        raise ImageError(
            "there are no images to calibrate with", hint="give JPEG, PNG or WebP files"
        )
    if bad := list(_refused(images, progress)):
        more = [f"and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
        raise ImageError(
            f"{len(bad)} of {len(images)} images are unfit for calibration\n  "
            + "\n  ".join(bad[:LISTED] + more),
            hint="leave them out; use varied photographs of what the device will see",
        )
    warn_of_few(len(images), minimum, "images", progress)


def warn_of_few(count: int, minimum: int, what: str, progress: Progress) -> None:
    """Warn if there are fewer than `minimum` images or samples."""
    if count < minimum:
        progress.warn(
            f"{count} {what} are too few for a reliable calibration: give at least {minimum}"
        )


def _refused(images: Sequence[SourceImage], progress: Progress) -> Iterator[str]:
    first: dict[bytes, str] = {}
    with progress.task("checking images", len(images), "images") as task:
        looks = in_order(_look, images)
        for image, (digest, reason) in zip(images, looks, strict=True):
            if reason:
                yield reason
            elif digest in first:
                yield f"`{image.name}` has the same pixels as `{first[digest]}`"
            else:
                first[digest] = image.name
            task.advance()


def _look(image: SourceImage) -> tuple[bytes, str]:
    """Return a digest of the pixels, and why the image is bad, if it is."""
    import numpy as np

    try:
        pixels = np.asarray(image.load())
    except ImageError as error:
        return b"", error.message.replace("\n ", ":")
    digest = hashlib.blake2b(repr(pixels.shape).encode())
    digest.update(pixels.data)
    fault = _fault(pixels)
    return digest.digest(), f"`{image.name}` {fault}" if fault else ""


def _fault(pixels: Pixels) -> str:
    import numpy as np

    height = len(pixels)
    upper = np.unique(np.linspace(0, max(height - 2, 0), SAMPLED_ROWS).astype(int))
    rows = pixels[upper].astype(np.float32)
    below = pixels[np.minimum(upper + 1, height - 1)].astype(np.float32)
    deviation = float(np.concatenate([rows, below]).std(axis=(0, 1)).max())
    if deviation < SOLID_DEVIATION:
        return f"has only one colour (standard deviation {deviation:.2f} of 255)"
    gray, gray_below = rows.mean(axis=2), below.mean(axis=2)
    across, down = _correlation(gray[:, :-1], gray[:, 1:]), _correlation(gray, gray_below)
    if max(abs(across), abs(down)) < NOISE_CORRELATION:
        return f"is noise (neighbouring pixels correlate by {across:.2f} and {down:.2f})"
    return ""


def _correlation(one: Any, other: Any) -> float:
    """Return Pearson's coefficient, and 1.0 where there is no variation to compare."""
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float((one * other).sum()) / scale if scale else 1.0
