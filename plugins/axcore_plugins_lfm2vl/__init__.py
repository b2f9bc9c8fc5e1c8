"""LFM2-VL: a SigLIP2 tower and a pixel unshuffle before a language model of short convolutions."""

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
    """Register the published sizes."""
    return cards()


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe tower and projector for one tile.

    Raises:
        UnsupportedProfile: The tile makes no whole tokens, or is larger than the tower takes.
        CheckpointError: The image processor's settings are of another model.
    """
    from . import preprocess, vision  # torch is only needed from here on

    size, grid = preprocess.tile_size(job), preprocess.patches(job)
    splitting = preprocess.splitting(job)

    def samples(images: Sequence[Image]) -> Iterator[Sample]:
        for image in images:
            yield from preprocess.samples(preprocess.cut(image, size, splitting).images)

    return [
        Component(
            "vision",
            f"{job.card.stem}_vision",
            vision.stages(parse(Config, job.config), grid, job.text_width),
            inputs=(Port("pixel_values", (1, 3, size[1], size[0])),),
            outputs=(Port("image_features", (1, preprocess.tokens(job), job.text_width)),),
            preprocess=samples,
            calibration=preprocess.CALIBRATION,
        )
    ]


@hookimpl
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the profile's lengths, and what the user has to know."""
    from . import preprocess

    types = job.text_config.get("layer_types", ())
    runs, rows = preprocess.splitting(job).most_runs, preprocess.tokens(job)
    return LlmBuildArgs.of(
        job.profile,
        model_type=job.text_config["model_type"],
        notes=(
            f"{list(types).count('conv')} of {len(types)} layers of the language model are short"
            " convolutions, which no vendor's builder is known to make",
            f"an image is up to {runs} tiles of {rows} tokens, {runs * rows} in all; a prompt"
            f" holds {job.profile.max_prompt}: --tiles makes images smaller",
        ),
    )


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt:
    """Write the messages as ChatML, with a run of the vision graph for each tile."""
    from .prompt import prepare

    return prepare(job, messages)
