"""Qwen3.5: a ViT before a language model most of whose layers attend linearly.

Patches of 16 px from two frames pass blocks with learned and rotary positions; four patches are
merged into one token. Three of four decoder layers are gated delta nets, which keep a state
instead of a cache. The vision graph takes images that are already cut into patches, so that the
board can feed uint8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import Component, Job, LlmBuildArgs, ModelCard, Port, Prompt, hookimpl

from .cards import cards, grid_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from axcore import Sample


@hookimpl
def model_cards() -> list[ModelCard]:
    """Register the 0.8B, the 2B and the 4B model."""
    return cards()


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe the tower at the profile's image size; for video, one temporal step a run."""
    from . import preprocess, vision  # torch is only needed from here on

    height, width = job.profile.height, job.profile.width
    grid, config = grid_of(job), job.config["vision_config"]
    grid.check(height, width)
    rows, columns = grid.cells(height, width)
    tokens = rows * columns, config["out_hidden_size"]
    patches = (1, 3, rows * columns * grid.merge**2, grid.columns)

    def samples(frames: Sequence[Image]) -> list[Sample]:
        return [{"hidden_states": grid.patches(frames, height, width)}]

    return [
        Component(
            "vision",
            f"{job.card.stem}_vision",
            vision.stages(config, height, width),
            inputs=(Port("hidden_states", patches),),
            outputs=(Port("hidden_states_out", tokens),),
            preprocess=samples,
            images_per_sample=grid.frames if job.task == "video" else 1,
            calibration=preprocess.CALIBRATION,
        )
    ]


@hookimpl
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the profile's lengths, with the model type of the nested language model."""
    return LlmBuildArgs.of(job.profile, model_type=job.text_config["model_type"])


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt:
    """Write the messages as ChatML, with a run of the vision graph for each image or step."""
    from .prompt import prepare

    return prepare(job, messages)
