"""Image preprocessing: valid sizes, and how patches are stored."""

from __future__ import annotations

from dataclasses import replace

from axcore import Calibration, PatchGrid

# Area in px of `preprocessor_config.json`; of `video_preprocessor_config.json`, which counts the
# pixels of all frames, for one step of two frames.
IMAGE_GRID = PatchGrid(patch_px=16, min_px=65_536, max_px=16_777_216)
VIDEO_GRID = replace(IMAGE_GRID, min_px=2_048, max_px=12_582_912)

# Patches are stored as images so that the target can take uint8. The toolchain reads a PNG as BGR
# and hands it on as told here; the patch images are stored so that channel 0 arrives as red.
CALIBRATION = Calibration(
    format="Image",
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    tensor_format="BGR",
    src_dtype="U8",
    src_layout="NHWC",
    size=8,
)
