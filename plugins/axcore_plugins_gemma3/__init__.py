"""Gemma 3: a SigLIP tower, averages of its patches and one projection before a Gemma."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import Component, Job, LlmBuildArgs, ModelCard, Port, Prompt, hookimpl

from .cards import cards

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from axcore import Sample

AXCORE_CONTRACT = 2


@hookimpl
def model_cards() -> list[ModelCard]:
    """Register the published size that takes images and fits on a board."""
    return cards()


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe tower and projector for one image.

    Raises:
        UnsupportedProfile: The tower has no positions for the size.
        CheckpointError: The image processor's settings are of another model.
    """
    from . import preprocess, vision  # torch is only needed from here on

    model = preprocess.model_of(job)
    side = model.vision_config.image_size

    def samples(images: Sequence[Image]) -> Iterator[Sample]:
        for image in images:
            yield preprocess.sample(image, side)

    shape = (1, model.mm_tokens_per_image, job.text_width)
    return [
        Component(
            "vision",
            f"{job.card.stem}_vision",
            vision.stages(model),
            inputs=(Port("pixel_values", (1, 3, side, side)),),
            outputs=(Port("image_features", shape),),
            preprocess=samples,
            calibration=preprocess.CALIBRATION,
        )
    ]


@hookimpl
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the lengths of the profile, and what chunks must hold."""
    from . import preprocess

    rows = preprocess.model_of(job).mm_tokens_per_image
    return LlmBuildArgs.of(
        job.profile,
        model_type=job.text_config["model_type"],
        check_level=1,
        notes=(
            f"the {rows} tokens of an image see each other, so they are read in one chunk:"
            f" --prefill-len must be {rows} or more",
        ),
    )


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt:
    """Write the messages, with a run of the vision graph for each image."""
    from .prompt import prepare

    return prepare(job, messages)
