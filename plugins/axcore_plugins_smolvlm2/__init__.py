"""SmolVLM2: a SigLIP tower, a pixel shuffle and one projection before a Llama."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import Component, Job, LlmBuildArgs, ModelCard, Port, Prompt, hookimpl, parse

from .cards import cards
from .config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from axcore import Sample


@hookimpl
def model_cards() -> list[ModelCard]:
    """Register the three published sizes."""
    return cards()


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe tower and connector for one tile.

    Raises:
        UnsupportedProfile: The tile is not square, or makes no whole tokens.
        CheckpointError: The image processor's settings are of another model.
    """
    from . import preprocess, vision  # torch is only needed from here on

    side, rows = preprocess.tile_px(job), preprocess.tokens(job)
    most = preprocess.most_tiles(job)

    def samples(images: Sequence[Image]) -> Iterator[Sample]:
        for image in images:
            yield from preprocess.samples(preprocess.cut(image, side, most).images)

    return [
        Component(
            "vision",
            f"{job.card.stem}_vision",
            vision.stages(parse(Config, job.config), side, job.text_width),
            inputs=(Port("pixel_values", (1, 3, side, side)),),
            outputs=(Port("image_features", (1, rows, job.text_width)),),
            preprocess=samples,
            calibration=preprocess.CALIBRATION,
        )
    ]


@hookimpl
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the published arguments, and how many tokens an image takes."""
    from . import preprocess

    most, rows = preprocess.most_tiles(job), preprocess.tokens(job)
    runs = most**2 + 1 if most > 1 else 1
    return LlmBuildArgs.of(
        job.profile,
        model_type=job.text_config["model_type"],
        check_level=1,
        notes=(
            f"an image is up to {runs} tiles of {rows} tokens, {runs * rows} in all; a prompt"
            f" holds {job.profile.max_prompt}: --tiles makes images smaller",
        ),
    )


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt:
    """Write the messages, with a run of the vision graph for each tile and each frame."""
    from .prompt import prepare

    return prepare(job, messages)
