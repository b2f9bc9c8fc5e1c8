"""Find images in folders and archives, read them as RGB, refuse those unfit for calibration."""

from __future__ import annotations

import hashlib
import math
import os
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from ..foreign import open_regular, read_bytes, reason
from ..limits import ARCHIVE_BYTES, ARRAY_BYTES, FOLDER_FILES, IMAGE_BYTES
from .arrays import SourceArray, is_array
from .decode import decode, kind_of, tiles, to_rgb
from .members import ERRORS, members
from .parallel import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from PIL.Image import Image

    from ..component import Component, Media
    from ..progress import Progress

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

LISTED = 20  # bad images named in one message

SOLID_DEVIATION = 2.0  # of 255, in the most varied channel; the dullest of 40 images had 10
# Between neighbouring pixels: white noise has at most 0.41 (weak, smoothed by JPEG), photographs
# have 0.69 (grass) and more.
NOISE_CORRELATION = 0.5
SAMPLED_ROWS = 256  # pairs of adjacent rows that the check of an image looks at
SAMPLED_COLUMNS = 8192  # of each, at most


@dataclass(frozen=True)
class SourceImage:
    """One JPEG, PNG or WebP image, read on demand.

    Attributes:
        name: Path of the file, or of the archive and the member in it.
        read: Returns the encoded bytes; may be called from any thread.
    """

    name: str
    read: Callable[[], bytes]

    @classmethod
    def of_file(cls, path: Path) -> SourceImage:
        """Return the image in a file, which is not looked at yet."""
        return cls(str(path), partial(read_bytes, path, IMAGE_BYTES))

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the encoded bytes; read once, then cached.

        Raises:
            ImageError: They cannot be read.
        """
        with self._explained():
            return hashlib.sha256(self.read()).hexdigest()

    def load(self, *, upright: bool = True) -> Image:
        """Decode the image; see `loaded`."""
        with self.loaded(upright=upright) as image:
            return image

    @contextmanager
    def loaded(self, *, upright: bool = True) -> Iterator[Image]:
        """Decode the image for a block. Large images are in memory one at a time, in all threads.

        Args:
            upright: Apply the EXIF orientation.

        Yields:
            An RGB image; transparency is blended with white, 16-bit gray is cut to the high byte.

        Raises:
            ImageError: It cannot be decoded, or is too large.
        """
        with ExitStack() as stack:
            with self._explained():
                image = decode(self.read(), upright, stack)
            yield image

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # decoders raise many kinds on damaged bytes
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise ImageError(
                f"`{self.name}` cannot be read as an image\n  {why}",
                hint="replace the file, make it smaller, or leave it out",
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
        return to_rgb(source)
    return SourceImage.of_file(Path(source)).load()


def embedded_images() -> list[Path]:
    """Return the photographs that come with the package (`LICENSES.md` beside them)."""
    folder = Path(str(resources.files("axcore") / "data" / "images"))
    return sorted(folder.glob("*.jpg"))


# Find --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What is calibrated with.

    Attributes:
        images, arrays: In natural order of their names: ``img2`` before ``img10``.
    """

    images: Sequence[SourceImage] = ()
    arrays: Sequence[SourceArray] = ()

    def of(self, media: Media) -> Sequence[SourceImage | SourceArray]:
        """Return what a component of that kind takes."""
        return self.images if media == "image" else self.arrays

    @property
    def all(self) -> Sequence[SourceImage | SourceArray]:
        """Both, the images first."""
        return [*self.images, *self.arrays]


def find_images(sources: Sequence[Path]) -> list[SourceImage]:
    """Return the images in folders (with everything below them), archives and files.

    Images are recognised by content, not by name; other files in folders and archives are
    ignored. Archives (TAR, compressed or not, and ZIP) are never unpacked to disk.

    Args:
        sources: Folders, archives or images.

    Returns:
        In natural order of their names: ``img2`` before ``img10``.

    Raises:
        ImageError: A source is missing, holds no image, has too many files, or unpacks to more
            than `ARCHIVE_BYTES`.
    """
    found = [image for source in sources for image in _held(source, arrays=False)]
    return sorted(found, key=lambda image: _natural(image.name))  # type: ignore[arg-type]


def find_data(sources: Sequence[Path]) -> Found:
    """Return the images and the arrays (``.npy``) in folders, archives and files.

    Raises:
        ImageError: As `find_images`; a source may hold either.
    """
    held = [one for source in sources for one in _held(source, arrays=True)]
    held.sort(key=lambda one: _natural(one.name))
    return Found(
        [one for one in held if isinstance(one, SourceImage)],
        [one for one in held if isinstance(one, SourceArray)],
    )


def files_below(folder: Path) -> list[Path]:
    """Return the regular files in a folder and below it, in no order; links to folders are not
    followed.

    Raises:
        ImageError: A folder cannot be read, or there are more than `FOLDER_FILES`.
    """
    found: list[Path] = []
    for path in _explained_walk(folder):
        if len(found) == FOLDER_FILES:
            raise ImageError(
                f"there are more than {FOLDER_FILES} files in {folder}",
                hint="give a folder of fewer images",
            )
        found.append(path)
    return [path for path in found if path.is_file()]


def _explained_walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ImageError(
            f"`{error.filename}` cannot be read\n  {reason(error)}",
            hint="make the folder readable, or leave it out",
        ) from error

    for root, _, names in os.walk(folder, onerror=fail):
        yield from (Path(root, name) for name in names)


def _held(source: Path, *, arrays: bool) -> list[SourceImage | SourceArray]:
    hint = "give JPEG, PNG or WebP files, a folder of them, or a TAR or ZIP archive"
    try:
        found = [one for one in _walk(source) if arrays or isinstance(one, SourceImage)]
    except ERRORS as error:
        raise ImageError(f"`{source}` cannot be read\n  {error}", hint=hint) from error
    if not found:
        neither = ", nor an array (.npy)" if arrays else ""
        raise ImageError(f"`{source}` holds no JPEG, PNG or WebP image{neither}", hint=hint)
    return found


def _walk(source: Path) -> Iterator[SourceImage | SourceArray]:
    if source.is_dir():
        for path in files_below(source):
            yield from _of_file(path)
    elif found := list(_of_file(source)):
        yield from found
    else:
        yield from _members(source)


def _of_file(path: Path) -> Iterator[SourceImage | SourceArray]:
    start = _read(path, 0, 16)
    if kind_of(start):
        yield SourceImage.of_file(path)
    elif is_array(start):
        yield SourceArray(str(path), partial(read_bytes, path, ARRAY_BYTES))


def _members(archive: Path) -> Iterator[SourceImage | SourceArray]:
    """Yield the images and arrays of an archive.

    Of a plain TAR each is a range of the file; else they are kept in memory, as seeking is slow.
    """
    kept = 0
    for member in members(archive):
        start = member.read(0, 16)
        if not (kind_of(start) or is_array(start)):
            continue
        read: Callable[[], bytes]
        most = ARRAY_BYTES if is_array(start) else IMAGE_BYTES
        size = min(member.size, most + 1)  # one more than is decoded
        if member.offset is not None:
            read = partial(_read, archive, member.offset, size)
        else:
            kept += size
            if kept > ARCHIVE_BYTES:
                raise ImageError(
                    f"`{archive}` unpacks to more than {ARCHIVE_BYTES >> 20} MiB of images",
                    hint="unpack it and give the folder, or give an uncompressed TAR",
                )
            read = partial(bytes, member.read(0, size))
        yield (SourceArray if is_array(start) else SourceImage)(f"{archive}/{member.name}", read)


def _read(path: Path, offset: int, size: int) -> bytes:
    with open_regular(path) as file:
        file.seek(offset)
        return file.read(size)


def _natural(name: str) -> list[tuple[list[str | int], str]]:
    """Return a sort key that compares path by path and numbers as numbers."""
    return [
        ([int(text) if text.isdecimal() else text for text in re.split("([0-9]+)", part)], part)
        for part in Path(name).parts
    ]


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
    _refuse(_refused(images, progress), len(images), "images")
    warn_of_few(len(images), minimum, "images", progress)


def check_arrays(arrays: Sequence[SourceArray], component: Component, progress: Progress) -> None:
    """Refuse arrays that are unfit for calibration, all in one message.

    Args:
        arrays: What `find_data` found.
        component: Takes them; it says below which number there is a warning.
        progress: Where to report.

    Raises:
        ImageError: There is none, or some cannot be used.
    """
    if not arrays:
        raise ImageError(
            f"there are no arrays to calibrate `{component.name}` with, which takes no images",
            hint="give float32 .npy files of its data, in a folder or an archive, by --images",
        )
    _refuse((reason for array in arrays if (reason := _array_fault(array))), len(arrays), "arrays")
    warn_of_few(len(arrays), component.calibration.minimum, "arrays", progress)


def _array_fault(array: SourceArray) -> str:
    try:
        with array.loaded():
            return ""
    except ImageError as error:
        return _one_line(error)


def _one_line(error: ImageError) -> str:
    return error.message.replace("\n ", ":")


def _refuse(faults: Iterable[str], count: int, what: str) -> None:
    if bad := list(faults):
        more = [f"and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
        raise ImageError(
            f"{len(bad)} of {count} {what} are unfit for calibration\n  "
            + "\n  ".join(bad[:LISTED] + more),
            hint="leave them out; use varied data of the kind that the device will see",
        )


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
    try:
        with image.loaded() as decoded:
            return _digest(decoded), _fault(image.name, decoded)
    except ImageError as error:
        return b"", _one_line(error)


def _digest(image: Image) -> bytes:
    digest = hashlib.blake2b(repr(image.size).encode())
    for box in tiles(image):
        digest.update(image.crop(box).tobytes())
    return digest.digest()


def _fault(name: str, image: Image) -> str:
    import numpy as np

    last = image.height - 1
    upper = np.unique(np.linspace(0, max(last - 1, 0), SAMPLED_ROWS).astype(int))
    rows, below = _rows(image, upper), _rows(image, np.minimum(upper + 1, last))
    deviation = float(np.concatenate([rows, below]).std(axis=(0, 1)).max())
    if deviation < SOLID_DEVIATION:
        return f"`{name}` has only one colour (standard deviation {deviation:.2f} of 255)"
    gray, gray_below = rows.mean(axis=2), below.mean(axis=2)
    across, down = _correlation(gray[:, :-1], gray[:, 1:]), _correlation(gray, gray_below)
    if max(abs(across), abs(down)) < NOISE_CORRELATION:
        return f"`{name}` is noise (neighbouring pixels correlate by {across:.2f} and {down:.2f})"
    return ""


def _rows(image: Image, places: Any) -> Any:
    """Return the middle of some rows as float32 ``[rows, columns, 3]``."""
    import numpy as np

    left = max(0, (image.width - SAMPLED_COLUMNS) // 2)
    right = left + min(image.width, SAMPLED_COLUMNS)
    strips = [image.crop((left, int(top), right, int(top) + 1)) for top in places]
    return np.concatenate([np.asarray(strip, np.float32) for strip in strips])


def _correlation(one: Any, other: Any) -> float:
    """Return Pearson's coefficient, and 1.0 where there is no variation to compare."""
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float((one * other).sum()) / scale if scale else 1.0
