"""What a config says of a `RotaryTower`, and the tensors that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

from ..language.tensors import affine_tensors
from ..model_config import Count, Layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..component import Shape


@dataclass(frozen=True)
class RotaryTowerConfig:
    """A ``vision_config`` by the names of transformers.

    What the modules take for granted can have one value only. Families narrow the sizes that their
    images are cut by.
    """

    depth: Layers
    hidden_size: Count
    intermediate_size: Count
    num_heads: Count
    out_hidden_size: Count
    num_position_embeddings: Count
    patch_size: Count
    temporal_patch_size: Count
    spatial_merge_size: Count
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    in_channels: Literal[3] = 3

    def __post_init__(self) -> None:
        # Rows and columns each turn a quarter of a head's values, and as many again.
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(f"hidden_size: no multiple of 4 in each of {self.num_heads} heads")
        if isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings: {self.num_position_embeddings} is no square"
            )


def rotary_tower_tensors(config: Mapping[str, Any], prefix: str) -> dict[str, Shape]:
    """Return name and shape of every tensor of the tower, its last merger included.

    Args:
        config: ``vision_config``.
        prefix: Put before every name, e.g. ``visual.``.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    patch, frames = config["patch_size"], config["temporal_patch_size"]
    shapes: dict[str, Shape] = {
        **affine_tensors(
            prefix + "patch_embed.proj", hidden, config["in_channels"], frames, patch, patch
        ),
        prefix + "pos_embed.weight": (config["num_position_embeddings"], hidden),
        **merger_tensors(config, prefix + "merger."),
    }
    for index in range(config["depth"]):
        block = f"{prefix}blocks.{index}."
        shapes |= {
            **affine_tensors(block + "norm1", hidden),
            **affine_tensors(block + "norm2", hidden),
            **affine_tensors(block + "attn.qkv", 3 * hidden, hidden),
            **affine_tensors(block + "attn.proj", hidden, hidden),
            **affine_tensors(block + "mlp.linear_fc1", inner, hidden),
            **affine_tensors(block + "mlp.linear_fc2", hidden, inner),
        }
    return shapes


def merger_tensors(
    config: Mapping[str, Any], prefix: str, *, whole: bool = False
) -> dict[str, Shape]:
    """Return name and shape of every tensor of a `CellMerger`; see there for `whole`."""
    hidden = config["hidden_size"]
    merged = hidden * config["spatial_merge_size"] ** 2
    return {
        **affine_tensors(prefix + "norm", merged if whole else hidden),
        **affine_tensors(prefix + "linear_fc1", merged, merged),
        **affine_tensors(prefix + "linear_fc2", config["out_hidden_size"], merged),
    }
