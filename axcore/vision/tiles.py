"""Images cut into tiles: the choice of a grid, and its cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image


@dataclass(frozen=True)
class Tiles:
    """An image in tiles: cells row by row and then, if at all, the whole; or the whole alone.

    Attributes:
        images: The tiles.
        columns, rows: Of the grid of cells; 0 for the whole alone.
    """

    images: list[Image]
    columns: int = 0
    rows: int = 0


def nearest_grid(
    size: tuple[int, int], cell: tuple[int, int], most: int, least: int = 1
) -> tuple[int, int]:
    """Choose the grid of cells whose aspect ratio is nearest to an image's.

    Of equally near grids the larger wins if its area is below twice the image's.

    Args:
        size: Width and height of the image in px.
        cell: Width and height of a cell in px.
        most, least: Number of cells.

    Returns:
        Columns and rows.

    Source: the grids of ``find_closest_aspect_ratio`` in several published processors.
    """
    (width, height), (across, down) = size, cell
    best, distance = (1, 1), float("inf")
    for columns, rows in _grids(most, least):
        away = abs(width / height - (columns * across) / (rows * down))
        roomy = 2 * width * height > columns * rows * across * down
        if away < distance or (away == distance and roomy):
            best, distance = (columns, rows), away
    return best


def _grids(most: int, least: int) -> list[tuple[int, int]]:
    """List every grid of so many cells, sorted by their number, then by columns."""
    sides = range(1, most + 1)
    found = [(c, r) for c in sides for r in sides if least <= c * r <= most]
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def cells(image: Image, columns: int, rows: int) -> Iterator[Image]:
    """Yield the cells of an image row by row; its sides are multiples of `columns` and `rows`."""
    width, height = image.width // columns, image.height // rows
    for top in range(0, height * rows, height):
        for left in range(0, width * columns, width):
            yield image.crop((left, top, left + width, top + height))
