"""A transformer over a grid of patches, as static modules with parameters on the meta device.

The state is one float tensor ``[N, hidden]``, a row per patch, listed cell by cell: the patches
that a merger joins follow one another. For a fixed image size every position is a constant.

Source: transformers, ``vision_utils`` and the vision models that use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..component import Stage, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EPS = 1e-6


@dataclass(frozen=True)
class RotaryTower:
    """Stages of a tower for images of one size; mergers are the family's to place.

    Attributes:
        config: ``vision_config``, checked by `RotaryTowerConfig`.
        prefix: Of the tower's tensors.
        rows, columns: The grid of patches.
    """

    config: Mapping[str, Any]
    prefix: str
    rows: int
    columns: int

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Rotary factors, see `axial_rotation`."""
        places = cell_places(self.rows, self.columns, self.config["spatial_merge_size"])
        return axial_rotation(places, self.config["hidden_size"] // self.config["num_heads"])

    def embed(self) -> Stage:
        """Return the first stage: patches to state."""
        config, hidden = self.config, self.config["hidden_size"]
        values = config["in_channels"] * config["temporal_patch_size"] * config["patch_size"] ** 2
        side, merge = isqrt(config["num_position_embeddings"]), config["spatial_merge_size"]
        table = Weight(self.prefix + "pos_embed.weight")
        return Stage(
            "patch_embed",
            PatchEmbed(values, hidden, self.rows * self.columns),
            {
                "proj.weight": Weight(self.prefix + "patch_embed.proj.weight").reshape(hidden, -1),
                "proj.bias": self.prefix + "patch_embed.proj.bias",
                "positions": interpolated(table, side, self.rows, self.columns, merge),
            },
        )

    def block(self, index: int, carried: int = 0) -> Stage:
        """Return a block; `carried` is the number of tensors in the state beside the patches."""
        config = self.config
        sizes = config["hidden_size"], config["intermediate_size"], config["num_heads"]
        keys = f"{self.prefix}blocks.{index}."
        return Stage(
            f"blocks.{index}", RotaryBlock(*sizes, *self.factors), keys, f"block.{carried}"
        )

    def merger(self, kind: type[CellMerger] | None = None, *, whole: bool = False) -> CellMerger:
        """Return a merger for cells of this tower, of a kind derived from `CellMerger`."""
        config = self.config
        cell = config["spatial_merge_size"] ** 2
        made = kind or CellMerger
        return made(config["hidden_size"], cell, config["out_hidden_size"], whole=whole)


def cell_places(rows: int, columns: int, merge: int) -> Tensor:
    """Return row and column of every patch, listed cell by cell.

    Args:
        rows, columns: The grid of patches, multiples of `merge`.
        merge: Patches along each side of a cell.

    Returns:
        int64 ``[rows * columns, 2]``.
    """
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    cells = grid.reshape(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2)
    return cells.reshape(-1, 2)


def axial_rotation(places: Tensor, head_dim: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return the rotary factors of queries and keys, half of a head for rows, half for columns.

    The attention's scale is folded into the query's factors, and the sign of rotate-half into the
    sine, so that the graph has no negation.

    Args:
        places: Row and column of every patch, ``[N, 2]``.
        head_dim: Width of a head, a multiple of 4.
        theta: Base of the frequencies.

    Returns:
        cos, sin: float32 ``[N, 2, 1, head_dim]``; axis 1 is query, key.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim // 2, 2) / (head_dim // 2))
    angles = (places[..., None] * frequencies).flatten(1).repeat(1, 2)
    sign = torch.ones(head_dim)
    sign[: head_dim // 2] = -1
    scale = torch.tensor([head_dim**-0.5, 1.0]).reshape(2, 1, 1)
    return angles.cos()[:, None, None] * scale, (angles.sin() * sign)[:, None, None] * scale


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last axis by halves; the first half of `sin` is negated already."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], dim=-1) * sin


def interpolated(table: Weight, side: int, rows: int, columns: int, merge: int) -> Weight:
    """Return a square table of positions, bilinearly resampled to a grid, listed cell by cell.

    Corners stay corners.

    Args:
        table: ``[side * side, hidden]``.
        side: Positions along a side of the table.
        rows, columns: The grid of patches.
        merge: Patches along each side of a cell.
    """
    square = table.reshape(side, side, -1)
    placed = square.project(0, _taps(rows, side)).project(1, _taps(columns, side))
    cells = placed.reshape(rows // merge, merge, columns // merge, merge, -1)
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


def _taps(count: int, side: int) -> Sequence[Sequence[float]]:
    """Return the linear map from `side` positions to `count`, end to end."""
    source = torch.arange(count, dtype=torch.float32) * (side - 1) / max(count - 1, 1)
    taps: list[list[float]] = (1 - (source[:, None] - torch.arange(side)).abs()).clamp(0).tolist()
    return taps


class PatchEmbed(nn.Module):
    """Patches to state: float ``[1, channels, N, values]``, normalised, to ``[N, hidden]``.

    A convolution whose kernel equals its stride is a product with the flattened kernel. Positions
    are a parameter, `interpolated` from the checkpoint's table.
    """

    def __init__(self, values: int, hidden: int, count: int) -> None:
        super().__init__()
        self.values = values
        self.proj = nn.Linear(values, hidden, device="meta")
        self.positions = nn.Parameter(torch.empty(count, hidden, device="meta"))

    def forward(self, patches: Tensor) -> Tensor:
        """Embed every patch, all channels of it at once, and add its position."""
        x: Tensor = self.proj(patches.transpose(1, 2).reshape(-1, self.values))
        return x + self.positions


class RotaryAttention(nn.Module):
    """Multi-head self-attention among all patches, turned by their places."""

    cos: Tensor
    sin: Tensor

    def __init__(self, hidden: int, heads: int, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, device="meta")
        self.proj = nn.Linear(hidden, hidden, device="meta")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: ``[N, hidden]`` to the same."""
        count, hidden = x.shape
        qkv = self.qkv(x).reshape(count, 3, self.heads, hidden // self.heads)
        qk = rotated(qkv[:, :2], self.cos, self.sin)
        q, k, v = (
            part.reshape(count, self.heads, -1) for part in (qk[:, :1], qk[:, 1:], qkv[:, 2:])
        )
        weights = (q.transpose(0, 1) @ k.permute(1, 2, 0)).softmax(-1)
        seen = (weights @ v.transpose(0, 1)).transpose(0, 1).reshape(count, hidden)
        result: Tensor = self.proj(seen)
        return result


class MLP(nn.Module):
    """Two projections with the tanh form of GELU between them."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(hidden, inner, device="meta")
        self.linear_fc2 = nn.Linear(inner, hidden, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Transform every row: ``[N, hidden]`` to the same."""
        result: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))
        return result


class RotaryBlock(nn.Module):
    """One transformer block, ``[N, hidden]`` to the same.

    What else the state holds is handed on as it is, so that later stages can use it.
    """

    def __init__(self, hidden: int, inner: int, heads: int, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, EPS, device="meta")
        self.attn = RotaryAttention(hidden, heads, cos, sin)
        self.norm2 = nn.LayerNorm(hidden, EPS, device="meta")
        self.mlp = MLP(hidden, inner)

    def forward(self, x: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Attend, then transform every patch by itself."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x)), *carried


class CellMerger(nn.Module):
    """Cells to tokens: ``[N, hidden]`` to ``[N / cell, width]``.

    Args:
        hidden: Width of a patch.
        cell: Patches of a cell.
        width: Width of a token.
        whole: Whether the norm is over a whole cell instead of each of its patches.
    """

    def __init__(self, hidden: int, cell: int, width: int, *, whole: bool = False) -> None:
        super().__init__()
        self.merged, self.whole = cell * hidden, whole
        self.norm = nn.LayerNorm(self.merged if whole else hidden, EPS, device="meta")
        self.linear_fc1 = nn.Linear(self.merged, self.merged, device="meta")
        self.linear_fc2 = nn.Linear(self.merged, width, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each patch or cell, and merge."""
        cells = x.reshape(-1, self.merged)
        normed = self.norm(cells) if self.whole else self.norm(x).reshape(-1, self.merged)
        tokens: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(normed)))
        return tokens
