"""Dynamic tiling and samples against transformers' image processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from axcore import UnsupportedProfile, nearest_grid
from axcore_plugins_internvl import preprocess, tiling

from .conftest import PUBLISHED, photograph, processor

sides = st.integers(1, 4000)


@given(width=sides, height=sides, most=st.integers(1, 12), side=st.sampled_from([28, 448]))
def test_the_grid_is_the_one_that_upstream_chooses(
    width: int, height: int, most: int, side: int
) -> None:
    """Columns and rows for any image. Oracle: transformers."""
    expected = get_optimal_tiled_canvas((height, width), (side, side), 1, most)
    assert nearest_grid((width, height), (side, side), most) == expected


@pytest.mark.parametrize("size", [(448, 448), (896, 896), (1344, 1344), (448, 896), (633, 633)])
def test_equally_near_grids_are_settled_by_area(size: tuple[int, int]) -> None:
    """Square images, where 1x1, 2x2 and 3x3 tie. Oracle: transformers."""
    expected = get_optimal_tiled_canvas(size, (448, 448), 1, 12)
    assert nearest_grid((size[1], size[0]), (448, 448), 12) == expected


def test_tiles_that_are_not_square_count_by_their_proportions() -> None:
    """A small image of 2:1 is one tile of 2:1. Oracle: by hand."""
    assert nearest_grid((448, 224), (448, 224), 12) == (1, 1)
    assert nearest_grid((800, 1600), (448, 224), 4) == (1, 4)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(20, 500), height=st.integers(20, 500), tiles=st.integers(3, 12))
def test_tiles_are_what_the_processor_makes(width: int, height: int, tiles: int) -> None:
    """Pixels, order and the thumbnail at the end. Oracle: transformers' crop_to_patches."""
    image = photograph(height, width)
    expected = processor(56, tiles)(images=image, return_tensors="np")["pixel_values"]
    pieces = [np.asarray(piece) for piece in tiling.tile(image, tiles, 56, 56)]
    assert len(pieces) == len(expected) <= tiles
    np.testing.assert_allclose(preprocess.normalised(pieces), expected, atol=1e-5)


@pytest.mark.parametrize("tiles", [1, 2])
def test_up_to_two_tiles_are_the_whole_image(tiles: int) -> None:
    """There is no room for cells beside the whole. Oracle: transformers without cropping."""
    image = photograph(300, 900)
    whole = processor(56, 1)(images=image, return_tensors="np")["pixel_values"]
    (piece,) = tiling.tile(image, tiles, 56, 56)
    np.testing.assert_allclose(preprocess.normalised([np.asarray(piece)]), whole, atol=1e-5)


def test_a_sample_of_one_tile_is_an_image() -> None:
    """What the target reads and normalises. Oracle: the processor, mean and deviation by hand."""
    (sample,) = preprocess.samples(photograph(90, 70), 1, 56, 84)
    assert (sample["image"].dtype, sample["image"].shape) == (np.uint8, (56, 84, 3))
    np.testing.assert_allclose(preprocess.MEAN, 255 * np.array(PUBLISHED["image_mean"]))
    np.testing.assert_allclose(preprocess.STD, 255 * np.array(PUBLISHED["image_std"]))


def test_a_sample_of_several_tiles_is_full() -> None:
    """A batch is filled by repeating what there is. Oracle: the tiles of a 2:1 image."""
    image = photograph(100, 200)
    (sample,) = preprocess.samples(image, 5, 56, 56)
    first, second, whole, *again = sample["image"]
    assert sample["image"].shape == (5, 3, 56, 56)
    assert sample["image"].dtype == np.float32
    np.testing.assert_array_equal(again, [first, second])
    pieces = [np.asarray(piece) for piece in tiling.tile(image, 5, 56, 56)]
    np.testing.assert_array_equal([first, second, whole], preprocess.normalised(pieces))


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((450, 450), "448x448"), ((448, 470), "448x476"), ((0, 448), "28x448"), ((14, 28), "28x28")],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(
    size: tuple[int, int], nearest: str
) -> None:
    """The error quotes the size and names what fits. Oracle: worked out by hand."""
    with pytest.raises(UnsupportedProfile, match=f"{size[0]}x{size[1]} px") as caught:
        preprocess.check_size(*size)
    assert caught.value.hint == f"nearest that fits: {nearest}"
