"""The language model of a checkpoint under the names of one that stands alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..checkpoint.quantised import float_keys
from ..errors import CheckpointError, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..job import Job

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
BODY = "model."
"""Begins the names of everything but the head."""


def plain_config(job: Job) -> dict[str, Any]:
    """Return the ``config.json`` of the plain text model that a job's language model is.

    Raises:
        UnsupportedModel: The family does not say which it is.
    """
    config = {
        name: value
        for name, value in {**job.text_config, **job.card.layout.text_model}.items()
        if value is not None and not name.endswith("_config") and name != "auto_map"
    }
    architecture = next(iter(config.get("architectures") or ()), None)
    if not str(architecture).endswith("ForCausalLM"):
        raise UnsupportedModel(
            f"`{job.card.id}` does not say which text model its language model is\n"
            f"  architecture of that part: {architecture}",
            hint="the family's model card must say it in `layout.text_model`",
        )
    return config


def plain_names(job: Job, embedding: str) -> dict[str, str]:
    """Map the name in a plain model to the canonical key of each tensor, as of a float model.

    Args:
        job: Its checkpoint is read, its card says what belongs to the language model.
        embedding: Key of the token embedding, which may be a head that serves as both; what stands
            beside it is the model's body.

    Raises:
        CheckpointError: There are tensors that no plain model has.
    """
    body = embedding.removesuffix(EMBEDDING).replace(HEAD, BODY)
    layout, names, odd = job.card.layout, {}, []
    for key in float_keys(job.checkpoint):
        if not key.startswith(layout.text_prefixes) or key.startswith(layout.spare):
            continue
        if key == embedding:
            names[BODY + EMBEDDING] = key
        elif key.startswith(body):
            names[BODY + key.removeprefix(body)] = key
        elif key.endswith(HEAD):
            names[HEAD] = key
        else:
            odd.append(key)
    if odd:
        raise CheckpointError(
            f"{len(odd)} tensors of the language model are neither below `{body}` nor its head\n"
            f"  first: {', '.join(odd[:3])}\n  in: {job.checkpoint.folder}",
            hint=f"the language model of `{job.card.id}` cannot be taken out of the whole",
        )
    return names


def folded_scale(name: str, config: Mapping[str, Any]) -> float:
    """Return what a tensor is multiplied by so that a plain model computes what `config` asks for.

    A config may scale what attention and MLP add to the state, and the state before the head.
    Rows of the embedding come scaled.

    Source: the published code of the models whose configs have ``dim_model_base``.
    """
    if name == HEAD and config.get("dim_model_base"):
        return float(config["dim_model_base"] / config["hidden_size"])
    if name.endswith(("o_proj.weight", "down_proj.weight")) and config.get("scale_depth"):
        return float(config["scale_depth"] / math.sqrt(config["num_hidden_layers"]))
    return 1.0
