"""Image preprocessing: valid sizes, and samples made from images."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import Calibration, UnsupportedProfile

from .tiling import tile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from PIL.Image import Image

    from axcore import Sample

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

CELL_PX = 28  # 2 x 2 patches of 14 px become one token
MEAN = (123.675, 116.28, 103.53)  # `image_mean` in units of a byte
STD = (58.395, 57.12, 57.375)

# Pulsar2 cannot read images into a batch, so several tiles are stored as the input itself.
ONE_TILE = Calibration.of_pixels(MEAN, STD)
SEVERAL_TILES = Calibration(format="Numpy", src_dtype="FP32", src_layout="NCHW", size=-1)


def samples(image: Image, tiles: int, height: int, width: int) -> Iterator[Sample]:
    """Yield the calibration samples of one image; see `batches`.

    Args:
        image: RGB.
        tiles: The static batch size, and the maximum number of tiles.
        height, width: Size of a tile in px.
    """
    yield from batches(pieces(image, tiles, height, width), tiles)


def pieces(image: Image, tiles: int, height: int, width: int) -> list[Pixels]:
    """Return the tiles of an image, uint8 ``[height, width, 3]`` each; see `tiling.tile`."""
    return [np.asarray(piece.convert("RGB")) for piece in tile(image, tiles, height, width)]


def batches(cut: Sequence[Pixels], tiles: int) -> Iterator[Sample]:
    """Yield the graph's inputs for any number of tiles.

    Args:
        cut: Tiles of one image or several, uint8 ``[height, width, 3]``.
        tiles: The static batch size.

    Yields:
        ``image``: uint8 ``[height, width, 3]`` for a batch of one; else float32 ``[tiles, 3,
        height, width]``, RGB and normalised. The last batch is padded by repeating its tiles.
    """
    for start in range(0, len(cut), tiles):
        batch = cut[start : start + tiles]
        if tiles == 1:
            yield {"image": batch[0]}
        else:
            filled = [*batch] * ceil(tiles / len(batch))
            yield {"image": normalised(filled[:tiles])}


def normalised(tiles: Iterable[np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return float32 ``[N, 3, H, W]`` for N tiles uint8 ``[H, W, 3]``."""
    return np.concatenate([ONE_TILE.graph_input(pixels) for pixels in tiles])


def check_size(height: int, width: int) -> None:
    """Check that the sides of a tile are multiples of a cell.

    Raises:
        UnsupportedProfile: They are not; the hint suggests the nearest size that fits.
    """
    if all(side > 0 and side % CELL_PX == 0 for side in (height, width)):
        return
    nearest = [max(round(side / CELL_PX), 1) * CELL_PX for side in (height, width)]
    raise UnsupportedProfile(
        f"a tile of {height}x{width} px (height x width) does not fit: both sides must be"
        f" multiples of {CELL_PX} px",
        hint=f"nearest that fits: {nearest[0]}x{nearest[1]}",
    )
