"""Image preprocessing: valid sizes, tiles, and what the processor's settings say of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from axcore import Calibration, Tiles, UnsupportedProfile, cells, image_settings, nearest_grid

from .config import MERGE, PATCH_PX, Processor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from PIL.Image import Image

    from axcore import Job, Sample

CELL_PX = MERGE * PATCH_PX
MOST_TOKENS = 256  # `max_image_tokens`
CALIBRATION = Calibration.of_pixels((127.5,) * 3, (127.5,) * 3)


def tile_size(job: Job) -> tuple[int, int]:
    """Return width and height of a tile in px.

    Raises:
        UnsupportedProfile: The profile's size makes no whole tokens, or more than the model takes.
    """
    height, width = job.profile.height, job.profile.width
    whole = all(side > 0 and side % CELL_PX == 0 for side in (height, width))
    if whole and height * width <= MOST_TOKENS * CELL_PX**2:
        return width, height
    longest = max((MOST_TOKENS * CELL_PX**2 / max(height * width, 1)) ** 0.5, 0)
    scale = min(longest, 1)
    nearest = [
        max(int(side * scale / CELL_PX + (scale == 1) / 2), 1) * CELL_PX for side in (height, width)
    ]
    raise UnsupportedProfile(
        f"a tile of {height}x{width} px (height x width) does not fit: both sides must be"
        f" multiples of {CELL_PX} px, for {MOST_TOKENS} tokens at most",
        hint=f"one that fits: {nearest[0]}x{nearest[1]}",
    )


def patches(job: Job) -> tuple[int, int]:
    """Return how many patches are down and across a tile."""
    width, height = tile_size(job)
    return height // PATCH_PX, width // PATCH_PX


def tokens(job: Job) -> int:
    """Return the tokens of a tile."""
    rows, columns = patches(job)
    return rows * columns // MERGE**2


def splitting(job: Job) -> Processor:
    """Return how images are cut: as the checkpoint's image processor says, or as chosen.

    Raises:
        CheckpointError: The image processor's settings are of another model.
    """
    processor = image_settings(job.checkpoint.folder, Processor) or Processor()
    if (chosen := job.choice("tiles")) == "auto":
        return processor
    most = int(chosen)
    least = min(processor.min_tiles, most)
    return replace(processor, max_tiles=most, min_tiles=least, do_image_splitting=most > 1)


def cut(image: Image, size: tuple[int, int], processor: Processor) -> Tiles:
    """Cut an image into tiles if it is large.

    Args:
        image: RGB.
        size: Width and height of a tile in px.
        processor: How images are cut.

    Source: transformers, ``Lfm2VlImageProcessor``; there, what is not cut keeps its proportions.
    """
    whole = _stretched(image, *size)
    width, height = (max(PATCH_PX, round(side / CELL_PX) * CELL_PX) for side in image.size)
    large = width * height > size[0] * size[1] * processor.max_pixels_tolerance
    if not (processor.do_image_splitting and large):
        return Tiles([whole])
    columns, rows = nearest_grid(image.size, size, processor.max_tiles, processor.min_tiles)
    tiles = list(cells(_stretched(image, columns * size[0], rows * size[1]), columns, rows))
    if processor.use_thumbnail and len(tiles) > 1:
        tiles.append(whole)
    return Tiles(tiles, columns, rows)


def samples(tiles: Iterable[Image]) -> Iterator[Sample]:
    """Yield the graph's inputs, uint8 ``[height, width, 3]``."""
    for tile in tiles:
        yield {"pixel_values": np.asarray(tile.convert("RGB"))}


def _stretched(image: Image, width: int, height: int) -> Image:
    from PIL.Image import Resampling

    return image.resize((width, height), Resampling.BILINEAR)
