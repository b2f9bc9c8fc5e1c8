"""The vision tower of MiniCPM-V-4.6 as static modules.

The state between stages is float ``[1, N, hidden]``, a row per patch. Patches are listed cell by
cell from the start: those that a merger joins follow one another, so every merger and every 2 x 2
window is a reshape. No layer but the mergers sees the order, as positions are added before it.

Source: transformers, ``MiniCPMV4_6VisionModel`` and ``MiniCPMV4_6Merger``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axcore import (
    Stage,
    Vit,
    VitAttention,
    VitEmbedding,
    VitLayer,
    Weight,
    gridded,
    parse,
    selection,
    vit_norm,
)

from . import siglip
from .configs import V46Tower

if TYPE_CHECKING:
    from collections.abc import Mapping

MERGE = 2  # rows and columns of a cell: `window_kernel_size`, `merge_kernel_size`
CELL = MERGE**2
EPS = 1e-6  # of the last merger: upstream's constant, not in config.json
TOWER = "model.vision_tower."


def stages(
    config: Mapping[str, Any], rows: int, columns: int, *, early_merge: bool
) -> tuple[Stage, ...]:
    """Return the tower for a grid of patches, parameters on the meta device.

    Args:
        config: The checkpoint's config.
        rows: Patches down the image, a multiple of 2 for each merger.
        columns: Patches across it, likewise.
        early_merge: Whether cells are merged inside the tower too, so that a token stands for
            16 patches rather than 4.
    """
    vision = config["vision_config"]
    tower = parse(V46Tower, vision)
    order = cell_order(rows, columns, merges=1 + early_merge)
    keys = _embedding_keys(rows, columns, tower.side)
    chain = [Stage("embeddings", Embedding(tower, order), keys)]
    for index in range(vision["num_hidden_layers"]):
        layer = f"{TOWER}encoder.layers.{index}."
        chain.append(Stage(f"layers.{index}", VitLayer(tower), layer, "layer"))
        if early_merge and index == config["insert_layer_id"]:
            chain.append(Stage("vit_merger", WindowMerger(tower), TOWER + "vit_merger."))
    merger = Merger(tower.hidden_size, config["text_config"]["hidden_size"])
    chain.append(Stage("post_layernorm", vit_norm(tower), TOWER + "post_layernorm."))
    chain.append(Stage("merger", merger, "model.merger.mlp.0."))
    return tuple(chain)


def _embedding_keys(rows: int, columns: int, side: int) -> dict[str, str | Weight]:
    down, across = (selection(buckets(count, side), side) for count in (rows, columns))
    table = Weight(TOWER + "embeddings.position_embedding.weight")
    placed = gridded(table, side, down, across)
    return siglip.embedding_keys(TOWER + "embeddings.patch_embedding.", placed)


def cell_order(rows: int, columns: int, merges: int) -> Tensor:
    """List the patches of a grid so that those of a cell follow one another, at every level.

    Args:
        rows, columns: The grid; patches are numbered row by row.
        merges: How often 2 x 2 neighbours are merged.

    Returns:
        int64 ``[rows * columns]``: every ``4 ** merges`` entries are a square of the grid, whose
        quarters are squares again; cells come row by row at every level.
    """
    grid = torch.arange(rows * columns).reshape(rows, columns, 1)
    for _ in range(merges):
        down, across = len(grid) // MERGE, grid.shape[1] // MERGE
        cells = grid.reshape(down, MERGE, across, MERGE, -1).transpose(1, 2)
        grid = cells.reshape(down, across, -1)
    return grid.flatten()


def buckets(count: int, side: int) -> list[int]:
    """Return the table position of each of `count` patches along a side: the nearest below.

    In float32, where rounding decides for some counts. MiniCPM-V-4 rounds in other places.

    Source: transformers, ``get_vision_nearest_position_ids``.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    found: list[int] = torch.bucketize(torch.arange(count) / count, boundaries, right=True).tolist()
    return found


class Embedding(VitEmbedding):
    """Strip to state: float ``[1, 3, 14, 14 * N]``, normalised RGB, to ``[1, N, hidden]``."""

    order: Tensor

    def __init__(self, tower: Vit, order: Tensor) -> None:
        super().__init__(tower, len(order))
        self.register_buffer("order", order, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches with their positions and list them cell by cell."""
        return super().forward(pixels).index_select(1, self.order)


class CellAttention(VitAttention):
    """Attention inside each cell, all cells as one batch: nothing to mask."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend: ``[cells, 4, hidden]`` to the same."""
        shape = (*x.shape[:2], self.heads, -1)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).reshape(shape).transpose(1, 2) for project in projections)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        result: Tensor = self.out_proj(seen.flatten(2))
        return result


class WindowMerger(nn.Module):
    """Cells to rows inside the tower: ``[1, N, hidden]`` to ``[1, N / 4, hidden]``."""

    def __init__(self, tower: Vit) -> None:
        super().__init__()
        merged, inner = CELL * tower.hidden_size, CELL * tower.intermediate_size
        self.layer_norm1 = vit_norm(tower)
        self.self_attn = CellAttention(tower)
        self.pre_norm = nn.LayerNorm(merged, tower.layer_norm_eps, device="meta")
        self.linear_1 = nn.Linear(merged, inner, device="meta")
        self.linear_2 = nn.Linear(inner, tower.hidden_size, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Attend inside each cell, then merge it and add its mean."""
        cells = x.reshape(-1, CELL, x.shape[-1])
        attended = cells + self.self_attn(self.layer_norm1(cells))
        inner = F.gelu(self.linear_1(self.pre_norm(attended.flatten(1))), approximate="tanh")
        merged: Tensor = self.linear_2(inner) + attended.mean(1)
        return merged.unsqueeze(0)


class Merger(nn.Module):
    """State to tokens: ``[1, N, hidden]`` to ``[1, N / 4, width]`` of the language model."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        merged = CELL * hidden
        self.pre_norm = nn.LayerNorm(merged, EPS, device="meta")
        self.linear_1 = nn.Linear(merged, merged, device="meta")
        self.linear_2 = nn.Linear(merged, width, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Merge the rows of each cell."""
        cells = x.reshape(1, -1, CELL * x.shape[-1])
        tokens: Tensor = self.linear_2(F.gelu(self.linear_1(self.pre_norm(cells))))
        return tokens
