"""MiniCPM-V: SigLIP towers before small language models.

MiniCPM-V-4 and MiniCPM-V-2 have a resampler that makes 64 tokens of every image; MiniCPM-V-4.6
merges patches instead. Each model is a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import Component, Embedding, Job, LlmBuildArgs, ModelCard, Prompt, hookimpl

from . import v2, v4, v46, versions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

MODULES: dict[str, ModuleType] = {"minicpm-v-4": v4, "minicpm-v-2": v2, "minicpm-v-4.6": v46}
"""Model id to the module that describes it."""


@hookimpl
def model_cards() -> list[ModelCard]:
    """Register the supported models, and those that are recognised only to be refused by name."""
    return [*(module.card() for module in MODULES.values()), *versions.unsupported()]


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe the vision side at the profile's image size."""
    components: list[Component] = MODULES[job.card.id].export_vision(job)
    return components


@hookimpl
def split_graph(component: Component) -> list[int] | None:
    """Keep the resampler whole, which is small and has one stage; the default splits the towers."""
    return [] if len(component.stages) == 1 else None


@hookimpl
def embed_extract(job: Job) -> Embedding | None:
    """Describe the embedding if the model scales it; the default finds the others."""
    return v2.embed_extract(job) if MODULES[job.card.id] is v2 else None


@hookimpl
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the lengths of the profile, and notes for the user."""
    args: LlmBuildArgs = MODULES[job.card.id].llm_build_args(job)
    return args


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt:
    """Write the messages in the model's format, with a run of the tower for each piece."""
    prompt: Prompt = MODULES[job.card.id].prepare_prompt(job, messages)
    return prompt
