"""The default `decoder`: the stages that a config and a checkpoint's tensors describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...checkpoint.quantised import float_keys
from ...component import Stage, Weight
from ...language_model import Decoder, DecoderLayer
from ..architectures import described, unbuilt
from ..embedding import HEAD_KEYS
from ..standalone import BODY, EMBEDDING, HEAD, folded_scale
from .attention import Heads
from .forms import forms
from .layer import Head, Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...checkpoint import Checkpoint
    from ...job import Job
    from ...language_model import Embedding
    from ..architectures import Architecture
    from .layer import Form


def default_decoder(job: Job, embedding: Embedding) -> Decoder:
    """Return the decoder that config and tensors describe.

    Args:
        job: Its checkpoint has the language model's config and tensors.
        embedding: The token embedding; the layers stand beside it.

    Raises:
        UnsupportedModel: The architecture is not listed; the layers have tensors, or the config
            has settings, that this decoder does not implement.
    """
    architecture, config = described(job)
    checkpoint = job.checkpoint
    keys = set(float_keys(checkpoint))
    body = _body(embedding.key, keys)
    head = _head_key(job, keys) or embedding.key
    try:
        found = forms(job, architecture, config, body)
    except KeyError as error:
        raise unbuilt(f"no {error} in its config") from error
    kinds: dict[Form, Layer] = {}
    layers = tuple(
        _layer(index, form, architecture, f"{body}layers.{index}.", kinds)
        for index, form in enumerate(found)
    )
    for index, layer in enumerate(layers):
        stage = layer.stage if isinstance(layer, DecoderLayer) else layer
        _check_tensors(stage, f"{body}layers.{index}.", keys)
    attentions = [form.mixer for form in found if isinstance(form.mixer, Heads)]
    return Decoder(
        kind=str(job.text_config.get("model_type") or job.config["model_type"]),
        layers=layers,
        head=_head(found[0], config, architecture, checkpoint, body, head),
        width=found[0].hidden,
        cache_width=attentions[0].kv_heads * attentions[0].head_dim if attentions else 0,
        position_rows=3 if any(a.rotary and a.rotary.sections for a in attentions) else 1,
        checkpoint=checkpoint,
    )


def _layer(
    index: int,
    form: Form,
    architecture: Architecture,
    prefix: str,
    kinds: dict[Form, Layer],
) -> Stage | DecoderLayer:
    """Return a layer; those of one form share a module, and so a traced graph."""
    module = kinds.setdefault(form, Layer(form))
    kind = f"layer.{list(kinds).index(form)}"
    names = [name for name, _ in module.named_parameters()]
    keys = {name: _weight(name, form, architecture, prefix) for name in names}
    stage = Stage(f"layers.{index}", module, keys, kind)
    plain = form.window is None and all(cache.grows for cache in module.caches)
    return stage if plain else DecoderLayer(stage, module.caches, form.window)


def _weight(name: str, form: Form, architecture: Architecture, prefix: str) -> Weight:
    """Return the origin of a layer's parameter.

    Values that are rotated together stand half a head apart in the layer. Where the checkpoint has
    neighbours, the rows of q and k are put in that order: scores do not depend on it.
    """
    weight = Weight(prefix + renamed(name, architecture.names))
    module, heads = name.split(".")[-2], form.mixer
    if architecture.pairs == "halves" or module not in ("q_proj", "k_proj"):
        return weight
    assert isinstance(heads, Heads)
    count, width = heads.heads if module == "q_proj" else heads.kv_heads, heads.head_dim
    if name.endswith("bias"):
        return weight.reshape(count, width // 2, 2).transpose(0, 2, 1).reshape(count * width)
    split = weight.reshape(count, width // 2, 2, form.hidden).transpose(0, 2, 1, 3)
    return split.reshape(count * width, form.hidden)


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Return the checkpoint's name of a parameter.

    >>> renamed("mlp.up_proj.weight", {"mlp.up_proj": "feed_forward.w3"})
    'feed_forward.w3.weight'
    """
    module, _, parameter = name.rpartition(".")
    return f"{names.get(module, module)}.{parameter}"


def _head(
    form: Form,
    config: Mapping[str, Any],
    architecture: Architecture,
    checkpoint: Checkpoint,
    body: str,
    key: str,
) -> Stage:
    factor = folded_scale(HEAD, config) / config.get("logits_scaling", 1)
    vocabulary, cap = checkpoint.info(key).shape[0], config.get("final_logit_softcapping")
    module = Head(form, vocabulary, factor, cap)
    norm = body + renamed("norm.weight", architecture.names)
    return Stage("post", module, {"norm.weight": norm, "lm_head.weight": key})


def _head_key(job: Job, keys: set[str]) -> str:
    """Return the key of the output head; empty where the checkpoint has none of its own."""
    own = sorted(key for key in keys if key.startswith(job.card.layout.text_prefixes))
    named = [key for key in HEAD_KEYS if key in keys]
    return next(iter(named + [key for key in own if key.endswith(HEAD)]), "")


def _body(embedding: str, keys: set[str]) -> str:
    """Return the prefix of the module that has the layers: the nearest around the embedding.

    Where the head serves as the embedding, it is a sibling of that module.
    """
    around = embedding.replace(HEAD, BODY + EMBEDDING)
    while around:
        around = around.rstrip(".").rpartition(".")[0]
        prefix = f"{around}." if around else ""
        if any(key.startswith(f"{prefix}layers.0.") for key in keys):
            return prefix
    raise unbuilt(f"no layers beside its embedding `{embedding}`")


def _check_tensors(layer: Stage, prefix: str, keys: set[str]) -> None:
    """Refuse unknown tensors: leaving one out would silently change the model."""
    held = {key for key in keys if key.startswith(prefix)}
    taken = {key for weight in layer.weights().values() for key in weight.keys()}
    if odd := sorted(held ^ taken):
        verb = "lacks" if odd[0] in taken else "holds"
        raise unbuilt(f"a layer that {verb} `{odd[0]}`")
