"""Slicing: an image becomes a thumbnail and, if it is large, cells in full detail.

Calibration and prompts must agree on the pieces and their order, so both use this module.

Source: MiniCPM-V-4, ``MiniCPMVImageProcessor.slice_image``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from axcore import cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

Size = tuple[float, float]
"""Width and height in px, the order of Pillow."""

ROWS = 64  # `query_num`: rows that every piece gives the language model
MOST = 9  # `max_slice_nums`: cells at most


@dataclass(frozen=True)
class Slicing:
    """The pieces of one image.

    Attributes:
        source: Width and height in px of the first piece, the thumbnail.
        columns, rows: Cells across and down; 0 if the image is not cut.
        cell: Width and height in px of a cell.
    """

    source: tuple[int, int]
    columns: int = 0
    rows: int = 0
    cell: tuple[int, int] = (0, 0)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of every piece: the source, then the cells row by row."""
        return [self.source, *[self.cell] * (self.columns * self.rows)]

    @property
    def tokens(self) -> int:
        """Rows that all pieces contribute to the prompt, without the tokens between them."""
        return ROWS * len(self.sizes)

    def cut(self, image: Image) -> Iterator[Image]:
        """Yield the pieces of `image`, RGB, in order."""
        from PIL.Image import Resampling

        yield image.resize(self.source, Resampling.BICUBIC)
        if not self.columns:
            return
        width, height = self.cell
        refined = image.resize((width * self.columns, height * self.rows), Resampling.BICUBIC)
        yield from cells(refined, self.columns, self.rows)


def slicing(
    width: int, height: int, *, side: int = 448, multiple: int = 14, most: int = MOST
) -> Slicing:
    """Return how an image of ``width x height`` px is cut.

    Args:
        width, height: Size of the image in px.
        side: Every piece has about the area of a square of this side, in px.
        multiple: The sides of a piece are multiples of this, in px.
        most: Maximum number of cells.
    """
    source = _fitted((width, height), side, multiple)
    wanted = min(math.ceil(width * height / (side * side)), most)
    if wanted <= 1:
        return Slicing(source)
    columns, rows = _grid(width / height, wanted, most)
    cell = _rounded(width, columns) / columns, _rounded(height, rows) / rows
    return Slicing(source, columns, rows, _fitted(cell, side, multiple))


def notes(fit: str, max_prompt: int) -> list[str]:
    """Return notes on sliced images in a prompt of at most `max_prompt` tokens."""
    if fit != "slice":
        return []
    return [
        f"a sliced image gives {ROWS} rows a piece, up to {ROWS * (MOST + 1)} in all; a prompt"
        f" holds {max_prompt} tokens: --prefill-len or --last-kv-cache-len make room for more"
    ]


def _grid(ratio: float, wanted: int, most: int) -> tuple[int, int]:
    """Return columns and rows of about `wanted` cells with the aspect ratio nearest to `ratio`."""
    grids = [
        (columns, count // columns)
        for count in (wanted - 1, wanted, wanted + 1)
        if 1 < count <= most
        for columns in range(1, count + 1)
        if count % columns == 0
    ]
    return min(grids, key=lambda grid: abs(math.log(ratio) - math.log(grid[0] / grid[1])))


def _fitted(size: Size, side: int, multiple: int) -> tuple[int, int]:
    """Scale to the area of a square of `side`, keeping the aspect ratio, and round."""
    width, height = size
    ratio = width / height
    height = int(side / math.sqrt(ratio))
    return _rounded(int(height * ratio), multiple), _rounded(height, multiple)


def _rounded(length: float, multiple: int) -> int:
    return max(round(length / multiple) * multiple, multiple)
