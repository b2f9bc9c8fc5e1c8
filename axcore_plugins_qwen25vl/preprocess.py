"""Image preprocessing: valid sizes, and how patches are stored."""

from __future__ import annotations

from dataclasses import replace

from axcore import Calibration, PatchGrid

# Area in px of `preprocessor_config.json`.
GRID = PatchGrid(patch_px=14, min_px=3_136, max_px=12_845_056)

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
