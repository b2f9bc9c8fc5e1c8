"""A plain vision transformer: its part of a config, and the names and shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Literal

from ..language.tensors import affine_tensors
from ..model_config import Count, Layers, Positive

if TYPE_CHECKING:
    from ..component import Shape

CHANNELS = 3
MOST_SIDE = 512  # positions along a side: maps from the table are made in memory


@dataclass(frozen=True)
class Vit:
    """A plain vision transformer: learned positions, and norms before attention and MLP.

    The fields are those of transformers' ``vision_config``, so that a family's `Layout.config` can
    hold one; a subclass gives the defaults of fields that published configs leave out.

    Attributes:
        hidden_size, intermediate_size: Widths of state and MLP.
        num_hidden_layers, num_attention_heads: Layers, and heads of each.
        patch_size: Side of a patch in px.
        image_size: Side in px of the square that the stored positions are for.
        num_patches: Positions stored, where the config says it in this way.
        layer_norm_eps: Epsilon of the norms.
        hidden_act: "gelu" with the error function, or its approximation.
        num_channels: Of an image.
    """

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    patch_size: Count
    image_size: Count | None = None
    num_patches: Count | None = None
    layer_norm_eps: Positive = 1e-6
    hidden_act: Literal["gelu", "gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    num_channels: Literal[3] = 3

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size: not a multiple of {self.num_attention_heads} heads")
        if not 1 <= self.side <= MOST_SIDE or self.num_patches not in (None, self.side**2):
            name = "image_size" if self.num_patches is None else "num_patches"
            raise ValueError(
                f"{name}: {getattr(self, name)} is no square of 1 to {MOST_SIDE} patches a side"
            )

    @property
    def side(self) -> int:
        """Positions along a side of the square that is stored."""
        if self.num_patches is not None:
            return isqrt(self.num_patches)
        return (self.image_size or 0) // self.patch_size


def vit_tensors(prefix: str, vit: Vit, *, flat: bool = False) -> dict[str, Shape]:
    """Return name and shape of every tensor of a vision transformer without a pooling head.

    With H = ``hidden_size``, I = ``intermediate_size``, P = ``patch_size`` and N positions::

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
        vit: The dimensions, and the layers that are stored.
        flat: The patch embedding is a matrix, ``[H, P * P * 3]``, instead of a convolution.
    """
    hidden, inner, patch = vit.hidden_size, vit.intermediate_size, vit.patch_size
    pixels = (patch**2 * CHANNELS,) if flat else (CHANNELS, patch, patch)
    shapes: dict[str, Shape] = {
        **affine_tensors(prefix + "embeddings.patch_embedding", hidden, *pixels),
        prefix + "embeddings.position_embedding.weight": (vit.side**2, hidden),
    }
    for index in range(vit.num_hidden_layers):
        layer = f"{prefix}encoder.layers.{index}."
        shapes |= {
            **vit_attention_tensors(layer, hidden),
            **affine_tensors(layer + "layer_norm2", hidden),
            **affine_tensors(layer + "mlp.fc1", inner, hidden),
            **affine_tensors(layer + "mlp.fc2", hidden, inner),
        }
    return {**shapes, **affine_tensors(prefix + "post_layernorm", hidden)}


def vit_attention_tensors(prefix: str, hidden: int) -> dict[str, Shape]:
    """Return the tensors of attention, and of the norm before it, below `prefix`."""
    shapes = affine_tensors(prefix + "layer_norm1", hidden)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= affine_tensors(f"{prefix}self_attn.{name}", hidden, hidden)
    return shapes
