"""InternVL3 and InternVL3.5: InternViT-300M and a pixel shuffle before a Qwen2.5 or Qwen3 LLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import Component, Job, LlmBuildArgs, ModelCard, Port, Prompt, hookimpl

from . import layouts
from .cards import cards
from .variants import told_apart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from axcore import Sample

_NATIVE_NOTE = (
    "the checkpoint is in the layout of newer transformers, which has not been tried with the"
    " language-model builder. If the builder fails, use a checkpoint in the InternVLChatModel"
    " layout: the vision graph is the same"
)


@hookimpl
def model_cards() -> list[ModelCard]:
    """Register the supported models, and those that are recognised only to be refused by name."""
    return told_apart(cards())


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe tower and projector for a static batch of tiles.

    Raises:
        UnsupportedProfile: The tile size does not fit; the hint suggests the nearest that does.
    """
    from . import preprocess, vision  # torch is only needed from here on

    height, width = job.profile.height, job.profile.width
    preprocess.check_size(height, width)
    tiles = int(job.choice("tiles"))
    tokens = height * width // preprocess.CELL_PX**2

    def samples(images: Sequence[Image]) -> Iterator[Sample]:
        for image in images:
            yield from preprocess.samples(image, tiles, height, width)

    return [
        Component(
            "vision",
            f"internvl_vit_model_{tiles}x3x{height}x{width}",
            vision.stages(job.config, tiles, height, width, job.text_width),
            inputs=(Port("image", (tiles, layouts.CHANNELS, height, width)),),
            outputs=(Port("output", (tiles, tokens, job.text_width)),),
            preprocess=samples,
            calibration=preprocess.ONE_TILE if tiles == 1 else preprocess.SEVERAL_TILES,
        )
    ]


@hookimpl
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the published arguments, with the model type of the nested language model."""
    return LlmBuildArgs.of(
        job.profile,
        model_type=job.text_config["model_type"],
        check_level=1,
        notes=(_NATIVE_NOTE,) if layouts.is_native(job.config) else (),
    )


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt:
    """Write the messages as ChatML, with a run of the vision graph for each batch of tiles."""
    from .prompt import prepare

    return prepare(job, messages)
