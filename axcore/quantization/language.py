"""The language model of a checkpoint as one of its own, and what of it can be quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UnsupportedModel, UsageError
from ..types import LlmCheckpoint

if TYPE_CHECKING:
    from ..plugins import Registry
    from ..types import Job, Shape

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
LAYERS = "model.layers."
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""What GPTQModel offers, besides -1."""


@dataclass(frozen=True)
class Language:
    """A language model under the names of a plain one.

    Attributes:
        checkpoint: Its config, and its tensors by the canonical keys they come from.
        matrices: Name to shape ``[outputs, inputs]`` of the projections in its layers: what GPTQ
            quantises. Embedding and head stay as they are.
    """

    checkpoint: LlmCheckpoint
    matrices: Mapping[str, Shape]

    @cached_property
    def keys(self) -> dict[str, str]:
        """Canonical key to name."""
        return {key: name for name, (key, _) in self.checkpoint.tensors.items()}


def language_of(job: Job, registry: Registry) -> Language:
    """Return the language model that a job's checkpoint holds.

    Raises:
        CheckpointError: It is quantised already, or holds tensors that no plain one has.
        UnsupportedModel: The family does not say which plain model it is.
    """
    _check_float(job)
    config = _plain_config(job)
    names = _names(job, registry.call(job.family, "embed_extract", job=job).key)
    config["tie_word_embeddings"] = HEAD not in names
    shapes = {name: job.checkpoint.info(key).shape for name, key in names.items()}
    matrices = {n: s for n, s in shapes.items() if n.startswith(LAYERS) and len(s) == 2}
    tensors = {name: (key, 1.0) for name, key in names.items()}
    return Language(LlmCheckpoint(config, tensors), matrices)


def check_group_size(language: Language, group_size: int) -> None:
    """Refuse groups that do not fill the inputs of every projection.

    Raises:
        UsageError: The message names the projection, the hint the sizes that fit all.
    """
    widths = {name: shape[1] for name, shape in language.matrices.items()}
    fitting = [size for size in GROUP_SIZES if not any(w % size for w in widths.values())]
    if group_size == -1 or group_size in fitting:
        return
    shown = ", ".join(map(str, [*fitting, "-1 (all inputs)"]))
    odd = next((n for n, width in widths.items() if group_size < 1 or width % group_size), None)
    fact = f"groups of {group_size} are not offered"
    if odd is not None and group_size > 0:
        fact = f"groups of {group_size} do not divide the {widths[odd]} inputs of `{odd}`"
    raise UsageError(fact, hint=f"choose --group-size from {shown}")


def _check_float(job: Job) -> None:
    packed = [key for key in job.checkpoint.tensors if key.endswith(".qweight")]
    if packed:
        raise CheckpointError(
            f"the checkpoint is quantised already: {len(packed)} packed matrices\n"
            f"  first: {packed[0]}\n  in: {job.checkpoint.folder}",
            hint="quantise the original, float checkpoint",
        )


def _names(job: Job, embedding: str) -> dict[str, str]:
    """Map the name in a plain model to the canonical key of each of its tensors."""
    body = embedding.removesuffix(EMBEDDING)
    names, odd = {}, []
    for key in job.checkpoint.tensors:
        if key.startswith(job.card.text_prefixes):
            if key.startswith(body):
                names["model." + key.removeprefix(body)] = key
            elif key.endswith(HEAD):
                names[HEAD] = key
            else:
                odd.append(key)
    if odd:
        raise CheckpointError(
            f"{len(odd)} tensors of the language model are neither below `{body}` nor its head\n"
            f"  first: {', '.join(odd[:3])}\n  in: {job.checkpoint.folder}",
            hint=f"`{job.card.id}` cannot be quantised",
        )
    return names


def _plain_config(job: Job) -> dict[str, Any]:
    config = {
        name: value
        for name, value in {**job.text_config, **job.card.text_model}.items()
        if value is not None and not name.endswith("_config") and name != "auto_map"
    }
    architecture = next(iter(config.get("architectures") or ()), None)
    if not str(architecture).endswith("ForCausalLM"):
        raise UnsupportedModel(
            f"`{job.card.id}` does not say which text model its language model is\n"
            f"  architecture of that part: {architecture}",
            hint="the family's model card says it in `text_model`",
        )
    return config
