"""Images to patches, and the sizes that fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from axcore import UnsupportedProfile
from axcore_plugins_qwen25vl import preprocess
from axcore_plugins_qwen25vl.preprocess import GRID

from .conftest import CARD, photograph

PROCESSOR = dict(CARD.published.files["preprocessor_config.json"])


@settings(max_examples=30, deadline=None)
@given(height=st.integers(40, 300), width=st.integers(40, 300))
def test_patches_are_what_the_processor_makes(height: int, width: int) -> None:
    """Pixels, their order, mean and standard deviation, at the size the processor picks.

    Oracle: transformers' Qwen2VLImageProcessorPil with the published settings.
    """
    image = photograph(height, width)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": GRID.min_px, "longest_edge": GRID.max_px},
        image_mean=PROCESSOR["image_mean"],
        image_std=PROCESSOR["image_std"],
    )
    expected = processor(images=image, return_tensors="np")["pixel_values"]
    resized = smart_resize(height, width, 28, GRID.min_px, GRID.max_px)
    ours = GRID.patches([image], *resized)
    assert ours.dtype == np.uint8
    graph_input = preprocess.IMAGE_CALIBRATION.graph_input(ours)
    rows = graph_input[0].transpose(1, 0, 2).reshape(-1, 3 * 392)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_calibration_values_are_the_processors_in_units_of_a_byte() -> None:
    """Mean and deviation in 0..255. Oracle: the published preprocessor settings."""
    calibration = preprocess.IMAGE_CALIBRATION
    assert calibration.mean is not None
    assert calibration.std is not None
    np.testing.assert_allclose(calibration.mean, 255 * np.array(PROCESSOR["image_mean"]))
    np.testing.assert_allclose(calibration.std, 255 * np.array(PROCESSOR["image_std"]))


def test_two_frames_fill_the_two_halves_of_a_patch() -> None:
    """Frame 0 comes first in a patch's columns. Oracle: the patches of each frame alone."""
    frames = [photograph(112, 84, seed) for seed in (1, 2)]
    first, second = (GRID.patches([frame], 112, 84) for frame in frames)
    both = GRID.patches(frames, 112, 84)
    np.testing.assert_array_equal(both[:, :196], first[:, :196])
    np.testing.assert_array_equal(both[:, 196:], second[:, 196:])


@pytest.mark.parametrize(
    ("height", "width", "nearest"),
    [
        (450, 450, "448x448 or 476x476"),
        (448, 500, "448x476 or 448x504"),
        (28, 28, "56x56"),
        (4480, 4480, "3584x3584"),
        (28, 8400, "28x5600"),
        (0, 448, "28x448"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(
    height: int, width: int, nearest: str
) -> None:
    """The error quotes the size and names what fits. Oracle: worked out by hand."""
    with pytest.raises(UnsupportedProfile, match=f"{height}x{width} px") as caught:
        GRID.check(height, width)
    assert caught.value.hint == f"nearest that fit: {nearest}"


@given(height=st.integers(-5, 60_000), width=st.integers(1, 60_000))
def test_what_is_suggested_fits(height: int, width: int) -> None:
    """There is always a suggestion, and it is accepted. Oracle: transformers' smart_resize.

    A size that fits is one the image processor would keep.
    """
    suggested = GRID.nearest(height, width)
    assert suggested
    for size in suggested:
        GRID.check(*size)
        assert smart_resize(*size, 28, GRID.min_px, GRID.max_px) == size
