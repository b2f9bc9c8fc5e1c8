"""Image preprocessing: the one size, and what the processor's settings say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from axcore import Calibration, CheckpointError, UnsupportedProfile, image_settings, parse

from .config import Config, Processor

if TYPE_CHECKING:
    from PIL.Image import Image

    from axcore import Job, Sample

CALIBRATION = Calibration.of_pixels((127.5,) * 3, (127.5,) * 3)


def model_of(job: Job) -> Config:
    """Return the config, of which size and processor are those of the job.

    Raises:
        UnsupportedProfile: The images have another size than the tower's positions are for.
        CheckpointError: The image processor's settings contradict the config, or ask for pan and
            scan.
    """
    model, profile = parse(Config, job.config), job.profile
    side = model.vision_config.image_size
    if (profile.height, profile.width) != (side, side):
        raise UnsupportedProfile(
            f"an image of {profile.height}x{profile.width} px (height x width) does not fit: the"
            " tower has positions for one size",
            hint=f"the one that fits: {side}x{side}",
        )
    processor = image_settings(job.checkpoint.folder, Processor)
    if processor is None:
        return model
    size, length = processor.size, processor.image_seq_length or model.mm_tokens_per_image
    for name, ours, theirs in (
        ("size", f"{size.height}x{size.width} px", f"{side}x{side} px"),
        ("image_seq_length", f"{length} tokens", f"{model.mm_tokens_per_image} tokens"),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"the image processor makes {ours} of an image (`{name}`), the config {theirs}\n"
                f"  in: {job.checkpoint.folder}",
                hint="put both files of one published repository there",
            )
    return model


def sample(image: Image, side: int) -> Sample:
    """Return the graph's input for an image, uint8 ``[side, side, 3]``: stretched to a square."""
    from PIL.Image import Resampling

    return {"pixel_values": np.asarray(image.resize((side, side), Resampling.BILINEAR))}
