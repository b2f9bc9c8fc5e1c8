"""Decode JPEG, PNG and WebP to RGB, in bounded memory and time whatever a file says."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING

from ..limits import EXIF_BYTES, IMAGE_BYTES, IMAGE_MEMORY_BYTES, IMAGE_PARTS, JPEG_SCANS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_TILE_PIXELS = 1 << 20
_LARGE_PIXELS = 16 << 20
_LARGE = threading.RLock()  # large images are in memory one at a time, however many threads decode
_PIXEL_BYTES = 4  # of PIL
_WEBP_PIXEL_BYTES = 20  # two canvases, the frame, its copies
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
_ORIENTATION = 0x0112


def kind_of(data: bytes) -> str:
    """Return "JPEG", "PNG" or "WebP", by the first 16 bytes; empty for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def decode(data: bytes, upright: bool, stack: ExitStack) -> Image:
    """Return an image in RGB, as `to_rgb`.

    Args:
        data: The encoded bytes.
        upright: Apply the EXIF orientation.
        stack: Held until the image is released: others of more than 16 megapixels wait.

    Raises:
        Exception: Of many kinds: it cannot be decoded, or not in `IMAGE_MEMORY_BYTES`.
    """
    from PIL.Image import Transpose

    if len(data) > IMAGE_BYTES:
        raise ValueError(f"the file has more than {IMAGE_BYTES >> 20} MiB")
    with _open(data) as image:
        _check_cost(image, data)
        del data
        stack.enter_context(_LARGE if math.prod(image.size) > _LARGE_PIXELS else nullcontext())
        image.load()  # PNG has text behind its pixels
        _check_exif(image)
        orientation = image.getexif().get(_ORIENTATION) if upright else None
        made = to_rgb(image)
    if orientation in _UPRIGHT:
        made = made.transpose(Transpose[_UPRIGHT[orientation]])
    return made


def to_rgb(image: Image) -> Image:
    """Return a copy in RGB: transparency is laid on white, of 16-bit gray the high byte stays.

    Tile by tile, so that no third copy of all pixels is in memory.
    """
    from PIL import Image as PillowImage

    made = PillowImage.new("RGB", image.size)
    for box in tiles(image):
        made.paste(_tile_to_rgb(image.crop(box)), box[:2])
    return made


def tiles(image: Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes that cover an image, each of about a million pixels at most."""
    width, height = image.size
    columns = min(width, _TILE_PIXELS)
    rows = max(1, _TILE_PIXELS // max(1, columns))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _tile_to_rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image as PillowImage

    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
        return PillowImage.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = PillowImage.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")


def _open(data: bytes) -> ImageFile:
    # Not Image.open, which tries further decoders and only warns about huge images.
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    decoders: dict[str, Callable[[BytesIO], ImageFile]]
    decoders = {"JPEG": JpegImageFile, "PNG": PngImageFile, "WebP": WebPImageFile}
    if (kind := kind_of(data)) not in decoders:
        raise ValueError("the content is neither JPEG, PNG nor WebP")
    _check_parts(kind, data)
    return decoders[kind](BytesIO(data))


def _check_parts(kind: str, data: bytes) -> None:
    """Refuse a file of very many parts: Pillow takes microseconds for each."""
    steps = {"PNG": _chunks, "JPEG": _segments}.get(kind)
    if steps and sum(1 for _ in islice(steps(data), IMAGE_PARTS + 1)) > IMAGE_PARTS:
        raise ValueError(f"it has more than {IMAGE_PARTS} parts")


def _chunks(data: bytes) -> Iterator[int]:
    """Yield where each chunk of a PNG begins."""
    place = 8
    while place < len(data):
        yield place
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def _segments(data: bytes) -> Iterator[int]:
    """Yield where each segment of a JPEG begins, up to its pixels; bytes between count as such.

    Raises:
        ValueError: It has too much EXIF, which Pillow copies once for each of its entries.
    """
    from PIL.JpegImagePlugin import MARKER

    place, exif = 2, 0
    while place + 1 < len(data) and data[place : place + 2] != b"\xff\xda":
        yield place
        marker = 0xFF00 | data[place + 1]
        if data[place] != 0xFF or MARKER.get(marker, ("", "", None))[2] is None:
            place += 1
            continue
        size = max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
        exif += size if data[place + 4 : place + 8] == b"Exif" else 0
        if exif > EXIF_BYTES:
            raise ValueError(f"its EXIF has more than {EXIF_BYTES >> 10} KiB")
        place += 2 + size


def _check_cost(image: ImageFile, data: bytes) -> None:
    """Refuse what decoding cannot do in `IMAGE_MEMORY_BYTES`, or not in seconds."""
    pixels, held = math.prod(image.size), _PIXEL_BYTES
    if image.format == "WEBP":
        held = _WEBP_PIXEL_BYTES
    elif image.info.get("progressive"):  # two bytes for every coefficient
        held += 2 * len(image.getbands())
        if data.count(b"\xff\xda") * pixels > JPEG_SCANS * IMAGE_MEMORY_BYTES // 8:
            raise ValueError(f"it has {data.count(bytes((0xFF, 0xDA)))} passes over its pixels")
    # The second: pixels as they are stored and as RGB.
    needed = max(held * pixels + len(data), 2 * _PIXEL_BYTES * pixels)
    if needed > IMAGE_MEMORY_BYTES:
        width, height = image.size
        raise ValueError(
            f"{width} x {height} pixels take {needed >> 20} MiB to decode;"
            f" at most {IMAGE_MEMORY_BYTES >> 20} are spent"
        )


def _check_exif(image: ImageFile) -> None:
    """Refuse EXIF that is longer than the standard allows; see `_segments`."""
    spelt = image.info.get("Raw profile type exif") or ""  # as PNG stores it: two digits a byte
    if max(len(image.info.get("exif") or b""), len(spelt) // 3) > EXIF_BYTES:
        raise ValueError(f"its EXIF has more than {EXIF_BYTES >> 10} KiB")
