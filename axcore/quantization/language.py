"""The language model of a checkpoint as a text model, and its matrices to quantise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import CheckpointError, UnsupportedModel, UsageError
from ..language.standalone import HEAD, folded_scale, standalone_config, standalone_names
from ..language_model import LlmCheckpoint

if TYPE_CHECKING:
    from ..component import Shape
    from ..job import Job
    from ..plugins import Registry

LAYERS = "model.layers."
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Group sizes of GPTQModel, besides -1."""


@dataclass(frozen=True)
class Language:
    """A language model under the names of a text model (see `language.standalone`).

    Attributes:
        checkpoint: Its config, and the canonical keys of its tensors.
        matrices: Name to shape ``[outputs, inputs]`` of the projections in its layers, which GPTQ
            quantises. Embedding and head are not quantised.
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
        CheckpointError: It is quantised already, or has tensors that no text model has.
        UnsupportedModel: The family does not say which text model it is, or it has scales that
            text models ignore.
    """
    _check_float(job)
    config = standalone_config(job)
    names = standalone_names(job, registry.call(job.family, "embed_extract", job=job).key)
    _check_unscaled(job, names)
    config["tie_word_embeddings"] = HEAD not in names
    shapes = {name: job.checkpoint.info(key).shape for name, key in names.items()}
    matrices = {n: s for n, s in shapes.items() if n.startswith(LAYERS) and len(s) == 2}
    tensors = {name: (key, 1.0) for name, key in names.items()}
    return Language(LlmCheckpoint(config, tensors), matrices)


def check_group_size(language: Language, group_size: int) -> None:
    """Refuse a group size that does not divide the inputs of every projection.

    Raises:
        UsageError: The message names a projection, the hint the sizes that fit all.
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


def _check_unscaled(job: Job, names: Mapping[str, str]) -> None:
    """Refuse scales: folded into the weights, the whole model would apply them twice."""
    scaled = [name for name in names if folded_scale(name, job.text_config) != 1]
    if scaled:
        raise UnsupportedModel(
            f"`{job.card.id}` scales the outputs of {len(scaled)} tensors, text models do not\n"
            f"  first: {scaled[0]}, by {folded_scale(scaled[0], job.text_config):g}",
            hint="build its language model from the float checkpoint",
        )
