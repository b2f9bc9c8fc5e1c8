"""Qwen2.5-VL: a ViT with windowed attention in most blocks, before a Qwen2.5 LLM.

Patches of 14 px from two frames pass 32 blocks with rotary positions; four patches are merged into
one token. The vision graph takes images that are already cut into patches, so that the board can
feed uint8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from axcore import Component, Job, ModelCard, Port, Prompt, Stage, hookimpl

from .cards import VIDEO, cards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from axcore import Sample


@hookimpl
def model_cards() -> list[ModelCard]:
    """Register the 3B and the 7B model."""
    return cards()


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe the tower at the profile's image size; for video, one temporal step a run."""
    from . import preprocess, vision  # torch is only needed from here on

    height, width = job.profile.height, job.profile.width
    grid, config = preprocess.GRID, job.config["vision_config"]
    grid.check(height, width)
    video = job.task == VIDEO
    rows, columns = grid.cells(height, width)
    tokens = rows * columns

    def samples(frames: Sequence[Image]) -> list[Sample]:
        return [{"hidden_states": grid.patches(frames, height, width)}]

    return [
        Component(
            "vision",
            f"{job.card.stem}_vision",
            vision.stages(config, height, width),
            inputs=(Port("hidden_states", (1, 3, tokens * grid.merge**2, grid.columns)),),
            outputs=(Port("hidden_states_out", (tokens, config["out_hidden_size"])),),
            preprocess=samples,
            images_per_sample=grid.frames if video else 1,
            calibration=preprocess.VIDEO_CALIBRATION if video else preprocess.IMAGE_CALIBRATION,
        )
    ]


@hookimpl
def patch_attention(stage: Stage) -> Stage:
    """Attend windows as batches; stages of other kinds stay as they are."""
    from .vision import Block

    if not isinstance(stage.module, Block):
        return stage
    return replace(stage, module=stage.module.batched())


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt:
    """Write the messages as ChatML, with a run of the vision graph for each image or step."""
    from .prompt import prepare

    return prepare(job, messages)
