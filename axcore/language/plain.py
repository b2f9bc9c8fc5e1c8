"""View the language model of a checkpoint as a stand-alone text model."""

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
"""Prefix of all names except the head's."""


def plain_config(job: Job) -> dict[str, Any]:
    """Return the ``config.json`` of a job's language model as a stand-alone text model.

    Raises:
        UnsupportedModel: The family does not name the text model.
    """
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


def plain_names(job: Job, embedding: str) -> dict[str, str]:
    """Map names of the stand-alone model to canonical keys, as for an unquantised model.

    Args:
        job: Its checkpoint lists the tensors, its card says which belong to the language model.
        embedding: Key of the token embedding, possibly a head that serves as both; its siblings
            are the model's body.

    Raises:
        CheckpointError: There are tensors that no stand-alone model has.
    """
    body = embedding.removesuffix(EMBEDDING).replace(HEAD, BODY)
    names, odd = {}, []
    for key in float_keys(job.checkpoint):
        if not key.startswith(job.card.text_prefixes) or key.startswith(job.card.spare):
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
            hint=f"the language model of `{job.card.id}` cannot be extracted from the checkpoint",
        )
    return names


def folded_scale(name: str, config: Mapping[str, Any]) -> float:
    """Return the factor to fold into a tensor, so that a plain model applies `config`'s scales.

    A config can scale what attention and MLP add to the state, and the state before the head.
    Embedding rows are scaled already.

    Source: the published code of the models whose configs have ``dim_model_base``.
    """
    if name == HEAD and config.get("dim_model_base"):
        return float(config["dim_model_base"] / config["hidden_size"])
    if name.endswith(("o_proj.weight", "down_proj.weight")) and config.get("scale_depth"):
        return float(config["scale_depth"] / math.sqrt(config["num_hidden_layers"]))
    return 1.0
