"""Images to patches, and the sizes that fit."""

from __future__ import annotations

import numpy as np
import pytest
from axcore_plugins_qwen3vl import preprocess
from axcore_plugins_qwen3vl.preprocess import IMAGE_GRID, VIDEO_GRID
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from axcore import UnsupportedProfile

from .conftest import CARD, photograph

FILES = CARD.published.files
PROCESSOR = dict(FILES["preprocessor_config.json"])


@settings(max_examples=10, deadline=None)
@given(height=st.integers(200, 400), width=st.integers(200, 400))
def test_patches_are_what_the_processor_makes(height: int, width: int) -> None:
    """Pixels, their order, mean and standard deviation, at the size the processor picks.

    Oracle: transformers' Qwen2VLImageProcessorPil with the published settings.
    """
    image = photograph(height, width)
    names = ("size", "image_mean", "image_std", "patch_size", "temporal_patch_size", "merge_size")
    processor = Qwen2VLImageProcessorPil(**{name: PROCESSOR[name] for name in names})
    expected = processor(images=image, return_tensors="np")["pixel_values"]
    resized = smart_resize(height, width, 32, IMAGE_GRID.min_px, IMAGE_GRID.max_px)
    ours = IMAGE_GRID.patches([image], *resized)
    assert ours.dtype == np.uint8
    graph_input = preprocess.CALIBRATION.graph_input(ours)
    rows = graph_input[0].transpose(1, 0, 2).reshape(-1, 3 * 512)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_sizes_and_colours_are_the_processors() -> None:
    """Of images, and of a step of two frames. Oracle: the published preprocessor settings."""
    video = FILES["video_preprocessor_config.json"]
    for grid, settings_, frames in ((IMAGE_GRID, PROCESSOR, 1), (VIDEO_GRID, video, 2)):
        size = settings_["size"]
        assert frames * grid.min_px == size["shortest_edge"]
        assert frames * grid.max_px == size["longest_edge"]
        assert grid.patch_px == settings_["patch_size"]
        assert grid.frames == settings_["temporal_patch_size"]
        assert grid.merge == settings_["merge_size"]
        assert preprocess.CALIBRATION.mean == tuple(255 * x for x in settings_["image_mean"])
        assert preprocess.CALIBRATION.std == tuple(255 * x for x in settings_["image_std"])


@pytest.mark.parametrize(
    ("height", "width", "nearest"),
    [(390, 390, "384x384 or 416x416"), (64, 64, "256x256"), (0, 448, "96x960")],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(
    height: int, width: int, nearest: str
) -> None:
    """The error quotes the size and names what fits. Oracle: worked out by hand."""
    with pytest.raises(UnsupportedProfile, match=f"{height}x{width} px") as caught:
        IMAGE_GRID.check(height, width)
    assert caught.value.hint == f"nearest that fit: {nearest}"


@given(height=st.integers(-5, 60_000), width=st.integers(1, 60_000))
def test_what_is_suggested_fits(height: int, width: int) -> None:
    """There is always a suggestion, and it is accepted. Oracle: transformers' smart_resize.

    A size that fits is one the image processor would keep.
    """
    suggested = IMAGE_GRID.nearest(height, width)
    assert suggested
    for size in suggested:
        IMAGE_GRID.check(*size)
        assert smart_resize(*size, 32, IMAGE_GRID.min_px, IMAGE_GRID.max_px) == size
