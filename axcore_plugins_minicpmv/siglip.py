"""What the SigLIP towers of the family add to `axcore`'s: positions by id, and forms of keys.

Source: transformers, ``SiglipVisionTransformer``; timm, ``VisionTransformer``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from axcore import VitEmbedding, Weight

if TYPE_CHECKING:
    from torch import Tensor


class PlacedEmbedding(VitEmbedding):
    """Pixels to state, with positions looked up by id."""

    def forward(self, pixels: Tensor, position_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Embed the patches: float ``[1, 3, H, W]`` and int ``[1, N]``."""
        # The target gathers only by one-dimensional indices. index_select would cast them to int64,
        # a type that the target lacks.
        position = F.embedding(position_ids.flatten(), self.position)
        rows: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return rows + position


def embedding_keys(convolution: str, position: Weight) -> dict[str, str | Weight]:
    """Return the origin of the parameters of an embedding.

    Args:
        convolution: Key prefix of the patch embedding.
        position: A row for each patch, or for each position id.
    """
    found = {f"patch_embedding.{name}": convolution + name for name in ("weight", "bias")}
    return {**found, "position": position}


def unpacked(packed: str, width: int) -> dict[str, str | Weight]:
    """Return the origin of the parameters of q, k and v projections that are stored in one tensor.

    Args:
        packed: Key prefix of its weight and bias, e.g. ``attn.qkv.``.
        width: Rows of each projection.
    """
    return {
        f"{part}_proj.{kind}": Weight(packed + kind).slice(0, index * width, (index + 1) * width)
        for kind in ("weight", "bias")
        for index, part in enumerate("qkv")
    }
