"""A plain vision transformer: its dimensions, and the names and shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

from ..language.tensors import affine_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..component import Shape

CHANNELS = 3


@dataclass(frozen=True)
class Vit:
    """Dimensions of a plain vision transformer: learned positions, and norms before each part.

    Attributes:
        hidden, inner, heads: Widths of state and MLP, and attention heads, of a layer.
        patch: Side of a patch in px.
        side: Positions along a side of the square that is stored; 0 where it is not asked for.
        gelu: "tanh" for the approximation, "none" for the error function.
        eps: Epsilon of the norms.
    """

    hidden: int
    inner: int
    heads: int
    patch: int
    side: int = 0
    gelu: Literal["tanh", "none"] = "tanh"
    eps: float = 1e-6

    @classmethod
    def of(cls, config: Mapping[str, Any], **assumed: Any) -> Vit:
        """Read the dimensions from a ``vision_config`` by the names of transformers.

        Args:
            config: The tower's part of ``config.json``.
            assumed: Values of fields that the config may leave out.
        """
        said = {"layer_norm_eps": cls.eps, **assumed, **config}
        patch = said["patch_size"]
        side = isqrt(said["num_patches"]) if "num_patches" in said else said["image_size"] // patch
        return cls(
            hidden=said["hidden_size"],
            inner=said["intermediate_size"],
            heads=said["num_attention_heads"],
            patch=patch,
            side=side,
            eps=said["layer_norm_eps"],
        )


def vit_tensors(prefix: str, vit: Vit, depth: int, *, flat: bool = False) -> dict[str, Shape]:
    """Return name and shape of every tensor of a vision transformer without a pooling head.

    With H = hidden, I = inner, P = patch and N = side * side::

        embeddings.patch_embedding.weight, bias                   [H, 3, P, P], [H]
        embeddings.position_embedding.weight                      [N, H]
        encoder.layers.L.layer_norm1.weight, bias                 [H]
        encoder.layers.L.self_attn.q_proj.weight, bias            [H, H], [H]
        encoder.layers.L.self_attn.k_proj, v_proj, out_proj       likewise
        encoder.layers.L.layer_norm2.weight, bias                 [H]
        encoder.layers.L.mlp.fc1.weight, bias                     [I, H], [I]
        encoder.layers.L.mlp.fc2.weight, bias                     [H, I], [H]
        post_layernorm.weight, bias                               [H]

    Args:
        prefix: Put before every name, e.g. ``model.vision_model.``.
        vit: The dimensions.
        depth: Layers that are stored.
        flat: The patch embedding is a matrix, ``[H, P * P * 3]``, instead of a convolution.
    """
    pixels = (vit.patch**2 * CHANNELS,) if flat else (CHANNELS, vit.patch, vit.patch)
    shapes: dict[str, Shape] = {
        **affine_tensors(prefix + "embeddings.patch_embedding", vit.hidden, *pixels),
        prefix + "embeddings.position_embedding.weight": (vit.side**2, vit.hidden),
    }
    for index in range(depth):
        layer = f"{prefix}encoder.layers.{index}."
        shapes |= {
            **vit_attention_tensors(layer, vit.hidden),
            **affine_tensors(layer + "layer_norm2", vit.hidden),
            **affine_tensors(layer + "mlp.fc1", vit.inner, vit.hidden),
            **affine_tensors(layer + "mlp.fc2", vit.hidden, vit.inner),
        }
    return {**shapes, **affine_tensors(prefix + "post_layernorm", vit.hidden)}


def vit_attention_tensors(prefix: str, hidden: int) -> dict[str, Shape]:
    """Return the tensors of attention, and of the norm before it, below `prefix`."""
    shapes = affine_tensors(prefix + "layer_norm1", hidden)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= affine_tensors(f"{prefix}self_attn.{name}", hidden, hidden)
    return shapes
