"""A plain vision transformer as static modules: patch embedding, layers, final norm.

The state between stages is one float tensor ``[1, N, hidden]``, a row per patch, row by row of
the image. Positions are looked up or interpolated for the fixed image size while the weights
are read, so that the graph adds a constant. Parameters have the names of transformers.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words"; transformers, the vision towers of
contrastive models; timm, ``VisionTransformer``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..component import Stage, Weight
from .dimensions import CHANNELS, Vit

if TYPE_CHECKING:
    from collections.abc import Sequence

Matrix = tuple[tuple[float, ...], ...]


def vit_stages(
    prefix: str, vit: Vit, rows: Matrix, columns: Matrix, *, flat: bool = False
) -> list[Stage]:
    """Return a tower of the tensors that `vit_tensors` lists, parameters on the meta device.

    Args:
        prefix: Before every key, e.g. ``model.vision_model.``.
        vit: The dimensions.
        rows, columns: How positions of the grid come from the stored table; see `gridded`.
        flat: As for `vit_tensors`; the values of a patch are ordered row, column, channel.

    Returns:
        ``embeddings``, ``layers.0`` and so on, and ``post_layernorm``: float ``[1, 3, H, W]`` to
        ``[1, N, hidden]``.
    """
    patches, side = prefix + "embeddings.patch_embedding.", vit.patch_size
    weight = Weight(patches + "weight")
    if flat:
        weight = weight.reshape(-1, side, side, CHANNELS).transpose(0, 3, 1, 2)
    table = Weight(prefix + "embeddings.position_embedding.weight")
    keys: dict[str, str | Weight] = {
        "patch_embedding.weight": weight,
        "patch_embedding.bias": patches + "bias",
        "position": gridded(table, vit.side, rows, columns),
    }
    chain = [Stage("embeddings", VitEmbedding(vit, len(rows) * len(columns)), keys)]
    for index in range(vit.num_hidden_layers):
        layer = f"{prefix}encoder.layers.{index}."
        chain.append(Stage(f"layers.{index}", VitLayer(vit), layer, "layer"))
    return [*chain, Stage("post_layernorm", vit_norm(vit), prefix + "post_layernorm.")]


class VitEmbedding(nn.Module):
    """Pixels to state, positions added: a row of them for each patch.

    The convolution's kernel equals its stride, so an image ``[1, 3, H, W]`` and its patches laid
    side by side ``[1, 3, P, P * N]`` give the same rows.
    """

    def __init__(self, vit: Vit, patches: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            CHANNELS, vit.hidden_size, vit.patch_size, vit.patch_size, device="meta"
        )
        self.position = nn.Parameter(torch.empty(patches, vit.hidden_size, device="meta"))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches: float ``[1, 3, H, W]`` to ``[1, N, hidden]``."""
        rows: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return rows + self.position


class VitLayer(nn.Module):
    """One transformer layer, ``[1, N, hidden]`` to the same."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.layer_norm1 = vit_norm(vit)
        self.self_attn = VitAttention(vit)
        self.layer_norm2 = vit_norm(vit)
        self.mlp = _MLP(vit)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform every patch by itself."""
        attended: Tensor = x + self.self_attn(self.layer_norm1(x))
        transformed: Tensor = attended + self.mlp(self.layer_norm2(attended))
        return transformed


class VitAttention(nn.Module):
    """Multi-head self-attention over all patches."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.heads = vit.num_attention_heads
        self.q_proj = nn.Linear(vit.hidden_size, vit.hidden_size, device="meta")
        self.k_proj = nn.Linear(vit.hidden_size, vit.hidden_size, device="meta")
        self.v_proj = nn.Linear(vit.hidden_size, vit.hidden_size, device="meta")
        self.out_proj = nn.Linear(vit.hidden_size, vit.hidden_size, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Attend among the patches."""
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        result: Tensor = self.out_proj(attend(*parts, self.heads))
        return result


class _MLP(nn.Module):
    """Two projections with a GELU between them."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.approximate = "none" if vit.hidden_act == "gelu" else "tanh"
        self.fc1 = nn.Linear(vit.hidden_size, vit.intermediate_size, device="meta")
        self.fc2 = nn.Linear(vit.intermediate_size, vit.hidden_size, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Transform every row."""
        result: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
        return result


def vit_norm(vit: Vit) -> nn.LayerNorm:
    """Return a norm of the state, on the meta device."""
    return nn.LayerNorm(vit.hidden_size, eps=vit.layer_norm_eps, device="meta")


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


def pixel_shuffle(x: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Join each square of ``factor x factor`` patches into one row.

    Args:
        x: float ``[batch, rows * columns, width]``.
        grid: Rows and columns, multiples of `factor`.
        factor: Patches along a side of a square.

    Returns:
        float ``[batch, rows * columns / factor**2, factor**2 * width]``: squares row by row; in
        each its patches row by row.
    """
    batch, count, width = x.shape
    rows, columns = grid
    lines = x.reshape(batch * rows // factor, factor, columns // factor, factor * width)
    return lines.transpose(1, 2).reshape(batch, count // factor**2, factor**2 * width)


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


def interpolation(
    count: int, side: int, mode: str = "bicubic", *, antialias: bool = False
) -> Matrix:
    """Return the linear map of interpolation from `side` to `count` points.

    Args:
        count, side: Points along an axis of the grid, and of the table.
        mode: "bicubic" or "bilinear", as `torch.nn.functional.interpolate` computes them.
        antialias: Whether points are averaged where there are fewer of them.
    """
    unit = torch.eye(side)[:, None, None]
    made = F.interpolate(unit, size=(1, count), mode=mode, antialias=antialias)
    return tuple(tuple(row) for row in made[:, 0, 0].T.tolist())
