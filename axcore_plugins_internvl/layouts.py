"""Names and shapes of tensors in the two layouts that checkpoints of the family come in.

The remote layout (``InternVLChatModel``) joins query, key and value in one tensor; the native one
(``InternVLForConditionalGeneration``, which newer transformers write) keeps three. The language
model is the same in both. Everything here is described by the remote names, and translated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from axcore import Weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from axcore import Shape

    Tensors = Iterator[tuple[str, Shape]]

CHANNELS = 3
MERGE = 2  # patches along each side of the square that becomes a token, `downsample_ratio` 0.5
EMBEDDINGS = "vision_model.embeddings."
LAYERS = "vision_model.encoder.layers."
TEXT = "language_model."

_NATIVE: Mapping[str, tuple[str, ...]] = {
    EMBEDDINGS + "class_embedding": ("vision_tower.embeddings.cls_token",),
    EMBEDDINGS + "position_embedding": ("vision_tower.embeddings.position_embeddings",),
    EMBEDDINGS + "patch_embedding": ("vision_tower.embeddings.patch_embeddings.projection",),
    "mlp1.0": ("multi_modal_projector.layer_norm",),
    "mlp1.1": ("multi_modal_projector.linear_1",),
    "mlp1.3": ("multi_modal_projector.linear_2",),
}
_NATIVE_LAYER: Mapping[str, tuple[str, ...]] = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "ls1": ("lambda_1",),
    "ls2": ("lambda_2",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.projection_layer",),
    "mlp": ("mlp",),
}


@dataclass(frozen=True)
class Tower:
    """Dimensions of the vision tower.

    Attributes:
        hidden, inner, heads: Of a layer.
        depth: Layers.
        patch: Side of a patch in px.
        side: Patches along a side of the image that the stored positions are for.
        eps: Of the norms inside the tower.
    """

    hidden: int
    inner: int
    heads: int
    depth: int
    patch: int
    side: int
    eps: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Tower:
        """Read the dimensions from a ``config.json`` of either layout."""
        vision = config["vision_config"]
        patch = _length(vision["patch_size"])
        return cls(
            hidden=vision["hidden_size"],
            inner=vision["intermediate_size"],
            heads=vision["num_attention_heads"],
            depth=vision["num_hidden_layers"],
            patch=patch,
            side=_length(vision["image_size"]) // patch,
            eps=vision["layer_norm_eps"],
        )


def is_native(config: Mapping[str, Any]) -> bool:
    """Say whether a ``config.json`` is of the native layout."""
    return "text_config" in config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a ``config.json`` that describes the language model; empty if none."""
    text = config.get("text_config" if is_native(config) else "llm_config")
    return text if isinstance(text, dict) else {}


def origin(key: str, config: Mapping[str, Any]) -> Weight:
    """Return where the tensor of the remote name `key` comes from in the layout of `config`."""
    parts = [Weight(name) for name in _native(key)] if is_native(config) else [Weight(key)]
    return parts[0] if len(parts) == 1 else Weight.concat(parts, axis=0)


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the key and shape of every tensor that `config` implies, in its own layout."""
    text = text_config(config)
    tower = Tower.of(config)
    shapes = {**dict(_vision(tower)), **dict(_projector(tower, text["hidden_size"]))}
    if is_native(config):
        shapes = dict(_translated(shapes))
    return {**shapes, **dict(_language(text))}


def _length(side: int | list[int]) -> int:
    """Of a side in px: the native layout lists two, which are equal."""
    return side if isinstance(side, int) else side[0]


def _native(key: str) -> tuple[str, ...]:
    """Return the names in the native layout of what the remote layout calls `key`."""
    index, _, name = key.removeprefix(LAYERS).partition(".")
    if key.startswith(LAYERS):
        start, table = f"vision_tower.encoder.layer.{index}.", _NATIVE_LAYER
    else:
        start, table, name = "", _NATIVE, key
    stem = next(stem for stem in table if name.startswith(stem))
    return tuple(start + native + name.removeprefix(stem) for native in table[stem])


def _translated(shapes: Mapping[str, Shape]) -> Tensors:
    for key, shape in shapes.items():
        names = _native(key)
        for name in names:
            yield name, (shape[0] // len(names), *shape[1:])


def _vision(tower: Tower) -> Tensors:
    hidden, inner = tower.hidden, tower.inner
    yield EMBEDDINGS + "class_embedding", (1, 1, hidden)
    yield EMBEDDINGS + "position_embedding", (1, tower.side**2 + 1, hidden)
    yield from _both(EMBEDDINGS + "patch_embedding", hidden, CHANNELS, tower.patch, tower.patch)
    for index in range(tower.depth):
        layer = f"{LAYERS}{index}."
        yield from _both(layer + "norm1", hidden)
        yield from _both(layer + "attn.qkv", 3 * hidden, hidden)
        yield from _both(layer + "attn.proj", hidden, hidden)
        yield layer + "ls1", (hidden,)
        yield from _both(layer + "norm2", hidden)
        yield from _both(layer + "mlp.fc1", inner, hidden)
        yield from _both(layer + "mlp.fc2", hidden, inner)
        yield layer + "ls2", (hidden,)


def _projector(tower: Tower, width: int) -> Tensors:
    merged = tower.hidden * MERGE**2
    yield from _both("mlp1.0", merged)
    yield from _both("mlp1.1", width, merged)
    yield from _both("mlp1.3", width, width)


def _language(config: Mapping[str, Any]) -> Tensors:
    """Yield what a Qwen2 or Qwen3 consists of; whether the head is stored, the file decides."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield TEXT + "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"{TEXT}model.layers.{index}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield from _attention(layer + "self_attn.", config)
        yield layer + "mlp.gate_proj.weight", (inner, hidden)
        yield layer + "mlp.up_proj.weight", (inner, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, inner)
    yield TEXT + "model.norm.weight", (hidden,)
    yield TEXT + "lm_head.weight", (config["vocab_size"], hidden)


def _attention(prefix: str, config: Mapping[str, Any]) -> Tensors:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, config["num_key_value_heads"] * head_dim
    for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield f"{prefix}{name}.weight", (width, hidden)
        if config["model_type"] == "qwen2":
            yield f"{prefix}{name}.bias", (width,)
    yield prefix + "o_proj.weight", (hidden, queries)
    if config["model_type"] == "qwen3":
        yield prefix + "q_norm.weight", (head_dim,)
        yield prefix + "k_norm.weight", (head_dim,)


def _both(key: str, *shape: int) -> Tensors:
    """Yield weight and bias of a projection, convolution or norm."""
    yield key + ".weight", shape
    yield key + ".bias", shape[:1]
