"""Dynamic tiling: an image as a grid of tiles and a thumbnail of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axcore import Choice

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

    columns, rows = grid(*image.size, max(tiles - THUMBNAIL, 1), height, width)
    if columns * rows > 1:
        canvas = image.resize((columns * width, rows * height), Resampling.BICUBIC)
        for index in range(columns * rows):
            left, top = index % columns * width, index // columns * height
            yield canvas.crop((left, top, left + width, top + height))
    yield image.resize((width, height), Resampling.BICUBIC)


def grid(
    image_width: int, image_height: int, most: int, height: int, width: int
) -> tuple[int, int]:
    """Choose the grid whose aspect ratio is nearest to the image's.

    Of equally near grids the larger wins if its area is below twice the image's.

    Args:
        image_width, image_height: Size of the image in px.
        most: Maximum number of cells.
        height, width: Size of a cell in px.

    Returns:
        Columns and rows.
    """
    ratio, area = image_width / image_height, image_width * image_height
    best, distance = (1, 1), float("inf")
    for columns, rows in _grids(most):
        away = abs(ratio - (columns * width) / (rows * height))
        roomy = 2 * area > columns * rows * width * height
        if away < distance or (away == distance and roomy):
            best, distance = (columns, rows), away
    return best


def _grids(most: int) -> list[tuple[int, int]]:
    """List every grid of up to `most` cells, sorted by number of cells, then by columns."""
    sides = range(1, most + 1)
    found = [(columns, rows) for columns in sides for rows in sides if columns * rows <= most]
    return sorted(found, key=lambda grid: grid[0] * grid[1])
