"""Tower and connector of SmolVLM2 for one tile, as static modules.

Source: transformers, ``SmolVLMVisionTransformer`` and ``SmolVLMConnector``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from axcore import Stage, pixel_shuffle, selection, vit_stages

from .cards import CONNECTOR, TOWER
from .config import Config


def stages(config: Config, side_px: int, text_width: int) -> tuple[Stage, ...]:
    """Return tower and connector, parameters on the meta device.

    Args:
        config: ``config.json``.
        side_px: Side of a tile.
        text_width: Hidden size of the language model.
    """
    vit = config.vision_config
    side = side_px // vit.patch_size
    picked = selection(buckets(side, vit.side), vit.side)
    connector = Connector(vit.hidden_size, (side, side), config.scale_factor, text_width)
    return (
        *vit_stages(TOWER, vit, picked, picked),
        Stage("connector", connector, {"proj.weight": CONNECTOR}),
    )


def buckets(count: int, side: int) -> list[int]:
    """Return the table position of each of `count` patches along a side.

    In float32 as upstream, where rounding decides for some counts.

    Source: transformers, ``SmolVLMVisionEmbeddings.forward``.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    fractions = torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor(count))
    found = torch.bucketize(fractions.clamp(max=1 - 1e-6), boundaries, right=True)
    return [int(index) for index in found]


class Connector(nn.Module):
    """State to tokens: float ``[1, N, hidden]`` to ``[1, N / factor**2, text_width]``."""

    def __init__(self, hidden: int, grid: tuple[int, int], factor: int, text_width: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.proj = nn.Linear(hidden * factor**2, text_width, bias=False, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Join squares of patches and project them."""
        tokens: Tensor = self.proj(pixel_shuffle(x, self.grid, self.factor))
        return tokens
