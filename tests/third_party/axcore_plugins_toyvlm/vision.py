"""The tower as static modules; parameters on the meta device, the position table real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from axcore import Stage, Weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def stages(config: Mapping[str, Any], rows: int, text_width: int) -> Iterator[Stage]:
    """Yield patch embedding, blocks and projector."""
    width = config["hidden_size"]
    with torch.device("meta"):
        patch, blocks = Patches(width), [Block(config) for _ in range(config["depth"])]
        projector = nn.Sequential(
            nn.Linear(width, text_width), nn.GELU(), nn.Linear(text_width, text_width)
        )
    angles = torch.arange(rows)[:, None] / 100 ** (torch.arange(width) / width)
    patch.register_buffer("positions", torch.sin(angles), persistent=False)
    kernel = Weight("vision.patch.weight").reshape(width, -1)
    yield Stage("patch", patch, {"proj.weight": kernel, "proj.bias": "vision.patch.bias"})
    for index, block in enumerate(blocks):
        yield Stage(f"blocks.{index}", block, f"vision.blocks.{index}.", kind="block")
    yield Stage("projector", projector, "projector.")


class Patches(nn.Module):
    """Images ``[1, 3, H, W]`` to rows ``[1, N, width]``."""

    positions: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * 16 * 16, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Cut into patches of 16 px and embed each."""
        height, width = (side // 16 for side in pixels.shape[2:])
        cells = pixels.reshape(3, height, 16, width, 16).permute(1, 3, 0, 2, 4)
        rows: Tensor = self.proj(cells.reshape(1, height * width, -1))
        return rows + self.positions


class Block(nn.Module):
    """One transformer block; its fused attention is left to the default `patch_attention`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, config["num_heads"], batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform every row by itself."""
        normed = self.norm1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        result: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return result
