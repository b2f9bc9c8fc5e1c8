"""Image preprocessing: valid sizes, tiles, and what the processor's settings say of them."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from axcore import (
    Calibration,
    CheckpointError,
    Tiles,
    UnsupportedProfile,
    cells,
    image_settings,
    parse,
)

from .config import Config, Processor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from PIL.Image import Image

    from axcore import Job, Sample

PUBLISHED_TILES = 4  # along the longer side
CALIBRATION = Calibration.of_pixels((127.5,) * 3, (127.5,) * 3)


def tile_px(job: Job) -> int:
    """Return the side of a tile in px.

    Raises:
        UnsupportedProfile: The profile's is none that the tower makes whole tokens of.
    """
    model = parse(Config, job.config)
    height, width, patch = job.profile.height, job.profile.width, model.vision_config.patch_size
    factor, most, count = model.scale_factor, model.vision_config.side, height // patch
    if height == width and 0 < count <= most and count % factor == 0:
        return height
    nearest = min(max(round((height + width) / 2 / patch / factor) * factor, factor), most) * patch
    raise UnsupportedProfile(
        f"a tile of {height}x{width} px (height x width) does not fit: it is a square of up to"
        f" {most}x{most} patches of {patch} px, in squares of {factor}x{factor}",
        hint=f"nearest that fits: {nearest}x{nearest}",
    )


def tokens(job: Job) -> int:
    """Return the tokens of a tile."""
    model = parse(Config, job.config)
    return int(tile_px(job) // model.vision_config.patch_size // model.scale_factor) ** 2


def most_tiles(job: Job) -> int:
    """Return how many tiles an image has along its longer side.

    Raises:
        CheckpointError: The image processor's settings contradict the config.
    """
    processor = image_settings(job.checkpoint.folder, Processor)
    side = parse(Config, job.config).vision_config.image_size
    if processor and processor.max_image_size.longest_edge != side:
        raise CheckpointError(
            f"the image processor makes tiles of {processor.max_image_size.longest_edge} px"
            f" (`max_image_size`), the config of {side} px (`vision_config.image_size`)\n"
            f"  in: {job.checkpoint.folder}",
            hint="put both files of one published repository there",
        )
    if (chosen := job.choice("tiles")) != "auto":
        return int(chosen)
    if processor is None:
        return PUBLISHED_TILES
    along = processor.size.longest_edge // processor.max_image_size.longest_edge
    return along if processor.do_image_splitting else 1


def cut(image: Image, side: int, most: int) -> Tiles:
    """Cut an image into tiles.

    It is resized so that the longer side is `most` tiles, then so that both are whole numbers of
    tiles.

    Args:
        image: RGB.
        side: Of a tile in px.
        most: Tiles along the longer side; 1 for the whole image alone.

    Source: transformers, ``SmolVLMImageProcessorPil``.
    """
    resized = _lanczos(image, *_enlarged(*image.size, side * most))
    width, height = _whole_tiles(*resized.size, side)
    resized = _lanczos(resized, width, height)
    if max(width, height) <= side:
        return Tiles([resized])
    columns, rows = width // side, height // side
    return Tiles([*cells(resized, columns, rows), _lanczos(resized, side, side)], columns, rows)


def samples(tiles: Iterable[Image]) -> Iterator[Sample]:
    """Yield the graph's inputs, uint8 ``[side, side, 3]``."""
    for tile in tiles:
        yield {"pixel_values": np.asarray(tile.convert("RGB"))}


def _enlarged(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return the size with this longer side; the shorter is even."""
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return longest, max(other + other % 2, 1)
    other = int(longest * ratio)
    return max(other + other % 2, 1), longest


def _whole_tiles(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the size in whole tiles, the shorter side after the longer."""
    ratio = width / height
    if width >= height:
        width = ceil(width / side) * side
        return width, ceil(int(width / ratio) / side) * side
    height = ceil(height / side) * side
    return ceil(int(height * ratio) / side) * side, height


def _lanczos(image: Image, width: int, height: int) -> Image:
    from PIL.Image import Resampling

    return image.resize((width, height), Resampling.LANCZOS)
