"""InternViT-300M and its projector as static modules.

The state between stages is one float tensor ``[tiles, 1 + N, hidden]``: the class token, then a
row per patch, row by row of the tile. Positions are interpolated for the fixed tile size while
the weights are read, so that the graph adds a constant. Parameters carry the names of the remote
layout.

Source: InternVL, ``InternVisionModel``, and ``pixel_shuffle`` with ``ps_version`` v2; transformers,
``InternVLVisionModel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axcore import Stage, Weight, gridded, interpolation, pixel_shuffle

from .layouts import CHANNELS, EMBEDDINGS, LAYERS, MERGE, Tower, origin

if TYPE_CHECKING:
    from collections.abc import Mapping


def stages(
    config: Mapping[str, Any], tiles: int, height: int, width: int, text_width: int
) -> tuple[Stage, ...]:
    """Return tower and projector for tiles of one size, parameters on the meta device.

    Args:
        config: ``config.json`` of either layout.
        tiles: The static batch.
        height, width: Size of a tile in px, multiples of two patches.
        text_width: Hidden size of the language model.
    """
    tower = Tower.of(config)
    grid = height // tower.patch, width // tower.patch
    chain = [_embedding(config, tower, tiles, grid)]
    for index in range(tower.depth):
        module = Block(tower)
        chain.append(
            Stage(f"blocks.{index}", module, _keys(module, f"{LAYERS}{index}.", config), "block")
        )
    projector = Projector(tower, grid, text_width)
    return *chain, Stage("projector", projector, _keys(projector, "", config))


def _embedding(config: Mapping[str, Any], tower: Tower, tiles: int, grid: tuple[int, int]) -> Stage:
    module = Embedding(tower, tiles, grid)
    keys = _keys(module, EMBEDDINGS, config)
    # Repeated here rather than by the graph, which would need Expand.
    keys["class_embedding"] = keys["class_embedding"].project(0, ((1.0,),) * tiles)
    keys["position_embedding"] = positions(keys["position_embedding"], tower.side, grid)
    return Stage("embeddings", module, keys)


def _keys(module: nn.Module, prefix: str, config: Mapping[str, Any]) -> dict[str, Weight]:
    return {name: origin(prefix + name, config) for name, _ in module.named_parameters()}


def positions(table: Weight, side: int, grid: tuple[int, int]) -> Weight:
    """Return the position table ``[1, 1 + side * side, hidden]`` for another grid of patches.

    Args:
        table: The class token's position, then those of a square of patches.
        side: Patches along a side of that square.
        grid: Patches down and across a tile.
    """
    rows, columns = grid
    if rows == columns == side:
        return table
    maps = interpolation(rows, side), interpolation(columns, side)
    placed = gridded(table.slice(1, 1, 1 + side**2), side, *maps)
    return Weight.concat([table.slice(1, 0, 1), placed.reshape(1, rows * columns, -1)], axis=1)


class Embedding(nn.Module):
    """Pixels to state: float ``[tiles, 3, H, W]``, normalised RGB."""

    def __init__(self, tower: Tower, tiles: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            CHANNELS, tower.hidden, tower.patch, tower.patch, device="meta"
        )
        count = 1 + grid[0] * grid[1]
        self.class_embedding = nn.Parameter(torch.empty(tiles, 1, tower.hidden, device="meta"))
        self.position_embedding = nn.Parameter(torch.empty(1, count, tower.hidden, device="meta"))

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches, put the class token before them and add the positions."""
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding, patches], dim=1) + self.position_embedding


class Block(nn.Module):
    """One transformer block, ``[tiles, 1 + N, hidden]`` to the same."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(tower.hidden, tower.eps, device="meta")
        self.attn = Attention(tower)
        self.ls1 = nn.Parameter(torch.empty(tower.hidden, device="meta"))
        self.norm2 = nn.LayerNorm(tower.hidden, tower.eps, device="meta")
        self.mlp = MLP(tower)
        self.ls2 = nn.Parameter(torch.empty(tower.hidden, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform every row by itself."""
        attended: Tensor = x + self.attn(self.norm1(x)) * self.ls1
        transformed: Tensor = attended + self.mlp(self.norm2(attended)) * self.ls2
        return transformed


class Attention(nn.Module):
    """Multi-head self-attention among the rows of a tile."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.heads = tower.heads
        self.qkv = nn.Linear(tower.hidden, 3 * tower.hidden, device="meta")
        self.proj = nn.Linear(tower.hidden, tower.hidden, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Attend: ``[tiles, rows, hidden]`` to the same."""
        tiles, rows, hidden = x.shape
        joined = self.qkv(x)
        parts = (joined[..., i * hidden : (i + 1) * hidden] for i in range(3))
        shape = (tiles, rows, self.heads, hidden // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return result


class MLP(nn.Module):
    """Two projections with a GELU between them."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tower.hidden, tower.inner, device="meta")
        self.fc2 = nn.Linear(tower.inner, tower.hidden, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Transform every row."""
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class Projector(nn.Module):
    """State to tokens: ``[tiles, 1 + N, hidden]`` to ``[tiles, N / 4, text_width]``."""

    def __init__(self, tower: Tower, grid: tuple[int, int], text_width: int) -> None:
        super().__init__()
        self.grid = grid
        merged = tower.hidden * MERGE**2
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(merged, device="meta"),  # of torch's default eps, 1e-5
            nn.Linear(merged, text_width, device="meta"),
            nn.GELU(),
            nn.Linear(text_width, text_width, device="meta"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Drop the class token, merge the patches and project them."""
        tokens: Tensor = self.mlp1(pixel_shuffle(x[:, 1:], self.grid, MERGE))
        return tokens
