"""Names and shapes of tensors in the two checkpoint layouts of the family.

The remote layout (``InternVLChatModel``) stores query, key and value in one tensor; the native
layout (``InternVLForConditionalGeneration``, written by newer transformers) stores three. The
language model is the same in both. This module uses the remote names and translates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from axcore import Weight, affine_tensors, llama_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from axcore import Shape

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
        hidden, inner, heads: Widths of state and MLP, and attention heads, of a layer.
        depth: Number of layers.
        patch: Side of a patch in px.
        side: Patches along a side of the image that the stored position table is for.
        eps: Epsilon of the norms inside the tower.
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
    """Return whether a ``config.json`` is of the native layout."""
    return "text_config" in config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a ``config.json`` that describes the language model; empty if none."""
    text = config.get("text_config" if is_native(config) else "llm_config")
    return text if isinstance(text, dict) else {}


def origin(key: str, config: Mapping[str, Any]) -> Weight:
    """Return the origin, in the layout of `config`, of the tensor with the remote name `key`."""
    parts = [Weight(name) for name in _native(key)] if is_native(config) else [Weight(key)]
    return parts[0] if len(parts) == 1 else Weight.concat(parts, axis=0)


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the key and shape of every tensor that `config` implies, in its own layout."""
    text = text_config(config)
    tower = Tower.of(config)
    shapes = {**_vision(tower), **_projector(tower, text["hidden_size"])}
    if is_native(config):
        shapes = dict(_translated(shapes))
    kind = text["model_type"]
    language = llama_tensors(text, TEXT, qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3")
    return {**shapes, **language}


def _length(side: int | list[int]) -> int:
    """Return the length of a side in px; the native layout lists two equal ones."""
    return side if isinstance(side, int) else side[0]


def _native(key: str) -> tuple[str, ...]:
    """Return the names in the native layout for the remote name `key`."""
    index, _, name = key.removeprefix(LAYERS).partition(".")
    if key.startswith(LAYERS):
        start, table = f"vision_tower.encoder.layer.{index}.", _NATIVE_LAYER
    else:
        start, table, name = "", _NATIVE, key
    stem = next(stem for stem in table if name.startswith(stem))
    return tuple(start + native + name.removeprefix(stem) for native in table[stem])


def _translated(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    for key, shape in shapes.items():
        names = _native(key)
        for name in names:
            yield name, (shape[0] // len(names), *shape[1:])


def _vision(tower: Tower) -> dict[str, Shape]:
    hidden, inner, patch = tower.hidden, tower.inner, tower.patch
    shapes: dict[str, Shape] = {
        EMBEDDINGS + "class_embedding": (1, 1, hidden),
        EMBEDDINGS + "position_embedding": (1, tower.side**2 + 1, hidden),
        **affine_tensors(EMBEDDINGS + "patch_embedding", hidden, CHANNELS, patch, patch),
    }
    for index in range(tower.depth):
        layer = f"{LAYERS}{index}."
        shapes |= {
            **affine_tensors(layer + "norm1", hidden),
            **affine_tensors(layer + "attn.qkv", 3 * hidden, hidden),
            **affine_tensors(layer + "attn.proj", hidden, hidden),
            layer + "ls1": (hidden,),
            **affine_tensors(layer + "norm2", hidden),
            **affine_tensors(layer + "mlp.fc1", inner, hidden),
            **affine_tensors(layer + "mlp.fc2", hidden, inner),
            layer + "ls2": (hidden,),
        }
    return shapes


def _projector(tower: Tower, width: int) -> dict[str, Shape]:
    merged = tower.hidden * MERGE**2
    return {
        **affine_tensors("mlp1.0", merged),
        **affine_tensors("mlp1.1", width, merged),
        **affine_tensors("mlp1.3", width, width),
    }
