"""Images to graph inputs, and the sizes that fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from axcore import UnsupportedProfile
from axcore_plugins_minicpmv import preprocess
from axcore_plugins_minicpmv.slicing import slicing

from .conftest import photograph


def only(image: Image.Image, height: int, width: int, fit: str) -> np.ndarray[Any, Any]:
    (sample,) = preprocess.samples(image, height, width, fit)
    return sample


def test_stretched_pixels_are_what_the_processor_makes() -> None:
    """Size, scale, mean and deviation. Oracle: transformers' SigLIP processor, bicubic, 0.5."""
    processor = SiglipImageProcessorPil(
        size={"height": 392, "width": 448}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    image = photograph(300, 500)
    expected = processor(images=image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(only(image, 392, 448, "stretch"), expected, atol=1e-6)


def test_padding_keeps_proportions_and_fills_with_gray() -> None:
    """A wide image lies between two bars. Oracle: the image resized by hand, 448 x 224."""
    image = photograph(600, 300)
    sample = only(image, 448, 448, "pad")
    inner = image.resize((448, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(sample[:, :, 112:336], preprocess.normalised(inner))
    bars = np.concatenate([sample[:, :, :112], sample[:, :, 336:]])
    assert np.abs(bars).max() < 0.005


def test_slices_are_stretched_one_by_one() -> None:
    """Every piece becomes a sample, in order. Oracle: the pieces, each stretched alone."""
    image = photograph(1000, 700)
    expected = [only(p, 448, 448, "stretch") for p in slicing(1000, 700).cut(image)]
    made = list(preprocess.samples(image, 448, 448, "slice"))
    assert len(made) == len(expected) == 1 + 4
    np.testing.assert_array_equal(np.concatenate(made), np.concatenate(expected))


def test_a_strip_holds_the_patches_side_by_side() -> None:
    """Patches in rows of the image, pixels in rows of the patch.

    Oracle: torch's unfold, rearranged as the published processor does it.
    """
    pixels = np.random.default_rng(0).standard_normal((1, 3, 42, 70)).astype(np.float32)
    patches = torch.nn.functional.unfold(torch.from_numpy(pixels), 14, stride=14)
    expected = patches.reshape(3, 14, 14, -1).permute(0, 1, 3, 2).reshape(1, 3, 14, -1)
    np.testing.assert_array_equal(preprocess.strip(pixels), expected.numpy())


@pytest.mark.parametrize(
    ("size", "multiple", "nearest"),
    [
        ((450, 450), 14, "448x448"),
        ((994, 448), 14, "980x448"),
        ((0, 448), 14, "14x448"),
        ((5, 2000), 14, "14x980"),
        ((448, 476), 56, "448x448"),
        ((980, 980), 56, "952x952"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(
    size: tuple[int, int], multiple: int, nearest: str
) -> None:
    """The error quotes the size and names what fits. Oracle: worked out by hand."""
    with pytest.raises(UnsupportedProfile, match=f"{size[0]}x{size[1]} px") as caught:
        preprocess.check_size(*size, multiple)
    assert caught.value.hint == f"nearest that fits: {nearest}"


@given(height=st.integers(-9, 2000), width=st.integers(-9, 2000))
def test_a_size_is_refused_exactly_when_its_grid_is(height: int, width: int) -> None:
    """Whole patches, 1 to 70 a side; what is suggested fits. Oracle: that rule."""
    grids = [side / 14 for side in (height, width)]
    if all(1 <= grid <= 70 and grid.is_integer() for grid in grids):
        preprocess.check_size(height, width)
        return
    with pytest.raises(UnsupportedProfile) as caught:
        preprocess.check_size(height, width)
    suggested = caught.value.hint.rpartition(" ")[2].split("x")
    preprocess.check_size(*map(int, suggested))
