"""Image preprocessing: valid sizes, and images cut into patches."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from axcore import Calibration, UnsupportedProfile

if TYPE_CHECKING:
    from collections.abc import Sequence

PATCH_PX = 14
FRAMES = 2  # `temporal_patch_size`: a still image is shown twice
MERGE = 2  # patches along each side of a merged cell, which becomes one token
CELL_PX = PATCH_PX * MERGE
COLUMNS = FRAMES * PATCH_PX**2  # values of one patch and channel
MIN_PX, MAX_PX = 3_136, 12_845_056  # area, `preprocessor_config.json`
MAX_RATIO = 200  # the image processor refuses longer images

# Patches are stored as images so that the target can take uint8. The toolchain reads a PNG as BGR
# and hands it on as told here; the patch images are stored so that channel 0 arrives as red.
IMAGE_CALIBRATION = Calibration(
    format="Image",
    mean=(122.7709383, 116.7460125, 104.09373615),
    std=(68.5005327, 66.6321579, 70.32316305),
    tensor_format="BGR",
    src_dtype="U8",
    src_layout="NHWC",
    size=8,
)
VIDEO_CALIBRATION = replace(IMAGE_CALIBRATION, size=4)


def patches(
    frames: Sequence[Image.Image], height: int, width: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Resize frames and cut them into patches, listed merge-block first.

    Args:
        frames: One RGB image, which fills both frames, or two.
        height: Target height in px, a multiple of 28.
        width: Target width in px, likewise.

    Returns:
        uint8 ``[N, 392, 3]`` with N = height * width / 196: row n is a patch, column
        ``frame * 196 + y * 14 + x`` a pixel of it, channels R, G, B.

    Source: transformers, ``Qwen2VLImageProcessorPil.patchify``.
    """
    size = (width, height)
    resized = [frame.convert("RGB").resize(size, Image.Resampling.BICUBIC) for frame in frames]
    pixels = np.stack([np.asarray(resized[i]) for i in (0, -1)])
    blocks = (height // CELL_PX, MERGE, PATCH_PX, width // CELL_PX, MERGE, PATCH_PX)
    listed = pixels.reshape(FRAMES, *blocks, 3).transpose(1, 4, 2, 5, 0, 3, 6, 7)
    return np.ascontiguousarray(listed.reshape(-1, COLUMNS, 3))


def check_size(height: int, width: int) -> None:
    """Check that the tower can take an image size.

    Raises:
        UnsupportedProfile: It cannot; the message says why, the hint suggests sizes.
    """
    if reason := _misfit(height, width):
        nearest = " or ".join(f"{h}x{w}" for h, w in nearest_sizes(height, width))
        raise UnsupportedProfile(
            f"an image of {height}x{width} px (height x width) does not fit: {reason}",
            hint=f"nearest that fit: {nearest}",
        )


def nearest_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the one or two sizes that fit, below and above, nearest to ``height x width`` px."""
    height, width = max(height, CELL_PX), max(width, CELL_PX)
    area = height * width
    scale = sqrt(min(MAX_PX, max(MIN_PX, area)) / area)
    found = set()
    for rounded in (floor, ceil):
        sides = (max(1, rounded(side * scale / CELL_PX)) * CELL_PX for side in (height, width))
        rows, columns = sides
        found.add((min(rows, MAX_RATIO * columns), min(columns, MAX_RATIO * rows)))
    return sorted(size for size in found if not _misfit(*size))


def _misfit(height: int, width: int) -> str:
    """Return what is wrong with a size; an empty string if nothing is."""
    if min(height, width) <= 0 or height % CELL_PX or width % CELL_PX:
        return f"both sides must be multiples of {CELL_PX} px"
    if not MIN_PX <= height * width <= MAX_PX:
        return f"its area of {height * width} px is outside {MIN_PX}..{MAX_PX} px"
    if max(height, width) > MAX_RATIO * min(height, width):
        return f"one side is more than {MAX_RATIO} times the other"
    return ""
