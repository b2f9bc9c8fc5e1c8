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


def standalone_config(job: Job) -> dict[str, Any]:
    """Return the ``config.json`` of a job's language model as a stand-alone text model.

    Raises:
        UnsupportedModel: The family does not name the text model.
    """
    config = {
        name: value
        for name, value in {**job.text_config, **job.card.layout.text_model}.items()
        if value is not None and not name.endswith("_config") and name != "auto_map"
    }
    architecture = next(iter(config.get("architectures") or ()), None)
    if not str(architecture).endswith("ForCausalLM"):
        raise UnsupportedModel(
            f"the card of `{job.card.id}` does not name the text model of its language model\n"
            f"  architecture of that part: {architecture}",
            hint="the family's model card must say it in `layout.text_model`",
        )
    return config


def standalone_names(job: Job, embedding: str) -> dict[str, str]:
    """Map names in a text model of its own to the canonical keys of the float tensors.

    Args:
        job: Its checkpoint has the keys; its card says which belong to the language model.
        embedding: Key of the token embedding, or of the head if that is used as embedding too.
            Its prefix is that of the model's body.

    Raises:
        CheckpointError: A tensor has no counterpart in a text model.
    """
    body = body_of(embedding)
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
            hint=f"the language model of `{job.card.id}` cannot be extracted from the checkpoint",
        )
    return names


def body_of(embedding: str) -> str:
    """Return what begins the keys of layers and last norm, by the key of the embedding.

    It is a sibling of the layers; an output head that serves as embedding, of what has them.
    """
    if embedding.endswith(HEAD):
        return embedding.removesuffix(HEAD) + BODY
    return "".join(f"{part}." for part in embedding.split(".")[:-2])


def folded_scale(name: str, config: Mapping[str, Any]) -> float:
    """Return the factor that makes up for the scales in `config`, which text models ignore.

    They scale the outputs of attention and MLP, and the input of the head. The factor of the
    embedding is not among them: its rows are scaled when they are written.

    Source: the published code of the models whose configs have ``dim_model_base``.
    """
    if name == HEAD and config.get("dim_model_base"):
        return float(config["dim_model_base"] / config["hidden_size"])
    if name.endswith(("o_proj.weight", "down_proj.weight")) and config.get("scale_depth"):
        return float(config["scale_depth"] / math.sqrt(config["num_hidden_layers"]))
    return 1.0
