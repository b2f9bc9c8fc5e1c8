"""Tower and projector of LFM2-VL for one tile, as static modules.

Source: transformers, ``Siglip2VisionTransformer`` and ``Lfm2VlMultiModalProjector``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from axcore import Stage, interpolation, pixel_shuffle, vit_stages

from .cards import PROJECTOR, TOWER
from .config import MERGE, Config


def stages(config: Config, grid: tuple[int, int], text_width: int) -> tuple[Stage, ...]:
    """Return tower and projector, parameters on the meta device.

    Args:
        config: ``config.json``.
        grid: Patches down and across a tile.
        text_width: Hidden size of the language model.
    """
    vit = config.vision_config
    maps = (interpolation(count, vit.side, "bilinear", antialias=True) for count in grid)
    return (
        *vit_stages(TOWER, vit, *maps, flat=True),
        Stage("projector", Projector(config, grid, text_width), PROJECTOR),
    )


class Projector(nn.Module):
    """State to tokens: float ``[1, N, hidden]`` to ``[1, N / 4, text_width]``."""

    def __init__(self, config: Config, grid: tuple[int, int], text_width: int) -> None:
        super().__init__()
        self.grid = grid
        joined, inner = config.vision_config.hidden_size * MERGE**2, config.projector_hidden_size
        self.layer_norm = (  # of torch's default eps, 1e-5
            nn.LayerNorm(joined, device="meta") if config.projector_use_layernorm else nn.Identity()
        )
        self.linear_1 = nn.Linear(joined, inner, device="meta")
        self.linear_2 = nn.Linear(inner, text_width, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Join squares of 2 x 2 patches and project them."""
        rows = self.layer_norm(pixel_shuffle(x, self.grid, MERGE))
        tokens: Tensor = self.linear_2(F.gelu(self.linear_1(rows)))
        return tokens
