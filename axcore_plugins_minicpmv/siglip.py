"""SigLIP towers as static modules: patch embedding, layers, final norm.

The state between stages is one float tensor ``[1, N, hidden]``, a row per patch, row by row of
the image. Positions are looked up or interpolated for the fixed image size while the weights
are read, so that the graph adds a constant.

Source: transformers, ``SiglipVisionTransformer``; timm, ``VisionTransformer``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axcore import Weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHANNELS = 3
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tower:
    """Dimensions of a tower.

    Attributes:
        hidden, inner, heads: Widths of state and MLP, and attention heads, of a layer.
        patch: Side of a patch in px.
        gelu: "tanh" for the approximation, "none" for the error function.
        eps: Epsilon of the norms.
    """

    hidden: int
    inner: int
    heads: int
    gelu: Literal["tanh", "none"]
    patch: int = 14
    eps: float = 1e-6


def tower(vision: Mapping[str, Any]) -> Tower:
    """Return the dimensions that a ``vision_config`` gives."""
    return Tower(
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["num_attention_heads"],
        gelu="tanh",
        patch=vision["patch_size"],
        eps=vision["layer_norm_eps"],
    )


class Embedding(nn.Module):
    """Pixels to state, positions added.

    The convolution's kernel equals its stride, so an image ``[1, 3, H, W]`` and its patches laid
    side by side ``[1, 3, 14, 14 * N]`` give the same rows.
    """

    def __init__(self, tower: Tower, patches: int) -> None:
        super().__init__()
        self.patch_embedding = _convolution(tower)
        self.position = nn.Parameter(torch.empty(patches, tower.hidden, device="meta"))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches: float ``[1, 3, H, W]`` to ``[1, N, hidden]``."""
        return _rows(self.patch_embedding(pixels)) + self.position


class PlacedEmbedding(nn.Module):
    """Pixels to state, with positions looked up by id."""

    def __init__(self, tower: Tower, positions: int) -> None:
        super().__init__()
        self.patch_embedding = _convolution(tower)
        self.position = nn.Parameter(torch.empty(positions, tower.hidden, device="meta"))

    def forward(self, pixels: Tensor, position_ids: Tensor) -> Tensor:
        """Embed the patches: float ``[1, 3, 14, 14 * N]`` and int ``[1, N]``."""
        # The target gathers only by one-dimensional indices. index_select would cast them to int64,
        # a type that the target lacks.
        position = F.embedding(position_ids.flatten(), self.position)
        return _rows(self.patch_embedding(pixels)) + position


class Layer(nn.Module):
    """One transformer layer, ``[1, N, hidden]`` to the same."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.layer_norm1 = norm(tower)
        self.self_attn = Attention(tower)
        self.layer_norm2 = norm(tower)
        self.mlp = MLP(tower)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform every patch by itself."""
        attended: Tensor = x + self.self_attn(self.layer_norm1(x))
        transformed: Tensor = attended + self.mlp(self.layer_norm2(attended))
        return transformed


class Attention(nn.Module):
    """Multi-head self-attention over all patches."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.heads = tower.heads
        self.q_proj = nn.Linear(tower.hidden, tower.hidden, device="meta")
        self.k_proj = nn.Linear(tower.hidden, tower.hidden, device="meta")
        self.v_proj = nn.Linear(tower.hidden, tower.hidden, device="meta")
        self.out_proj = nn.Linear(tower.hidden, tower.hidden, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Attend among the patches."""
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        result: Tensor = self.out_proj(attend(*parts, self.heads))
        return result


class MLP(nn.Module):
    """Two projections with a GELU between them."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.gelu = tower.gelu
        self.fc1 = nn.Linear(tower.hidden, tower.inner, device="meta")
        self.fc2 = nn.Linear(tower.inner, tower.hidden, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Transform every row."""
        result: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))
        return result


def norm(tower: Tower) -> nn.LayerNorm:
    """Return a norm of the state, on the meta device."""
    return nn.LayerNorm(tower.hidden, eps=tower.eps, device="meta")


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend with every head by itself.

    Args:
        q: float ``[1, M, width]``.
        k, v: float ``[1, N, width]``.
        heads: Divides width.

    Returns:
        float ``[1, M, width]``.
    """
    shape = (1, -1, heads, q.shape[-1] // heads)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


# Keys --------------------------------------------------------------------------------------------


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


# Positions ---------------------------------------------------------------------------------------


def gridded(table: Weight, side: int, rows: Matrix, columns: Matrix) -> Weight:
    """Return the rows of a square position table for a grid of patches.

    Args:
        table: ``[side * side, hidden]``, with leading axes of length 1 or without.
        side: Positions along a side of the table.
        rows, columns: Linear maps ``[n, side]`` from the table to the grid, one per axis.
    """
    square = table.reshape(side, side, -1)
    placed = square.project(0, rows).project(1, columns)
    return placed.reshape(len(rows) * len(columns), -1)


def selection(picked: Sequence[int], side: int) -> Matrix:
    """Return the linear map that picks positions: row i has its 1 at ``picked[i]``."""
    return tuple(tuple(float(k == index) for k in range(side)) for index in picked)


def interpolation(count: int, side: int) -> Matrix:
    """Return the linear map of antialiased bicubic interpolation from `side` to `count` points."""
    unit = torch.eye(side)[:, None, None]
    made = F.interpolate(unit, size=(1, count), mode="bicubic", antialias=True)
    return tuple(tuple(row) for row in made[:, 0, 0].T.tolist())


def _convolution(tower: Tower) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, tower.hidden, tower.patch, tower.patch, device="meta")


def _rows(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)
