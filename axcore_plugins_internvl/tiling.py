"""Dynamic tiling: an image as a grid of tiles and a thumbnail of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axcore import Choice, cells, nearest_grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

MOST_TILES = 12  # `max_dynamic_patch`

TILES = Choice(
    tuple(map(str, range(1, MOST_TILES + 1))),
    "tiles of one run of the graph, and of an image at most. 1, as on the board: the whole"
    " image. From 3 on an image is cut into a grid of up to one tile less, with proportions"
    " near its own, and the whole image is the last tile: finer detail, for 256 tokens a tile"
    " at 448x448 px. 2 takes two whole images",
)
THUMBNAIL = 1  # follows the cells of an image that is cut


def tile(image: Image, tiles: int, height: int, width: int) -> Iterator[Image]:
    """Cut an image into at most `tiles` tiles of ``height x width`` px.

    The image is resized to a grid of tiles, which are yielded row by row. If there are several, a
    thumbnail of the whole image follows and counts as one of them; with `tiles` of 1 or 2 there is
    only the whole image.

    Args:
        image: RGB.
        tiles: At least 1.
        height, width: Size of a tile in px.

    Yields:
        RGB images of ``height x width`` px.

    Source: InternVL, ``dynamic_preprocess``; transformers, ``GotOcr2ImageProcessorPil``.
    """
    from PIL.Image import Resampling

    columns, rows = nearest_grid(image.size, (width, height), max(tiles - THUMBNAIL, 1))
    if columns * rows > 1:
        canvas = image.resize((columns * width, rows * height), Resampling.BICUBIC)
        yield from cells(canvas, columns, rows)
    yield image.resize((width, height), Resampling.BICUBIC)
