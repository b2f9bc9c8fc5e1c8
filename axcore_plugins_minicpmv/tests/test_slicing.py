"""How images are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from axcore_plugins_minicpmv.slicing import Slicing, notes, slicing

sides = st.integers(1, 6000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((448, 448), Slicing((448, 448))),
        ((100, 100), Slicing((448, 448))),  # small ones are enlarged
        ((200, 100), Slicing((630, 322))),  # 632 x 316 to multiples of 14
        ((4480, 44), Slicing((4480, 42))),  # the area decides, not the length
        ((640, 480), Slicing((518, 392), 2, 1, (364, 546))),
        ((449, 448), Slicing((448, 448), 2, 1, (322, 630))),  # just above: two cells
        ((500, 500), Slicing((448, 448), 1, 2, (630, 322))),  # a tie: the first grid
        ((1344, 1344), Slicing((448, 448), 3, 3, (448, 448))),  # nine, not ten
        ((6000, 6000), Slicing((448, 448), 3, 3, (448, 448))),
        ((2000, 150), Slicing((1624, 126), 3, 1, (938, 210))),
    ],
)
def test_pieces_of_published_sizes(size: tuple[int, int], expected: Slicing) -> None:
    """Source, grid and cell. Oracle: the published rule worked out by hand."""
    assert slicing(*size) == expected


@given(width=sides, height=sides, multiple=st.sampled_from([14, 28, 56]))
def test_every_image_gives_one_piece_or_three_to_ten(
    width: int, height: int, multiple: int
) -> None:
    """Laws of the rule: multiples, the number of pieces, 64 tokens each.

    Oracle: the published limits (`max_slice_nums` 9, `query_num` 64).
    """
    made = slicing(width, height, multiple=multiple)
    assert len(made.sizes) in (1, *range(3, 11))
    assert (len(made.sizes) == 1) == (width * height <= 448 * 448)
    assert made.tokens == 64 * len(made.sizes)
    assert all(side > 0 and side % multiple == 0 for size in made.sizes for side in size)


def test_pieces_come_source_first_then_row_by_row() -> None:
    """Order and size of what is cut. Oracle: an image whose cells have a gray of their own."""
    levels = np.arange(6, dtype=np.uint8).reshape(3, 2) * 40
    image = Image.fromarray(np.kron(levels, np.ones((448, 448), np.uint8))).convert("RGB")
    made = slicing(*image.size)
    assert (made.columns, made.rows) == (2, 3)
    source, *cells = made.cut(image)
    assert [piece.size for piece in (source, *cells)] == made.sizes
    centres = [cell.getpixel((cell.width // 2, cell.height // 2)) for cell in cells]
    assert [pixel[0] for pixel in centres if isinstance(pixel, tuple)] == levels.flatten().tolist()


def test_only_slicing_says_what_a_prompt_must_hold() -> None:
    """Oracle: the words: 10 pieces of 64 tokens."""
    assert notes("stretch", 320) == []
    (line,) = notes("slice", 320)
    assert "640" in line
    assert "320" in line
