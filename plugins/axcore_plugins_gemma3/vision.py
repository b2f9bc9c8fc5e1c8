"""Tower and projector of Gemma 3 for one image, as static modules.

Source: transformers, ``SiglipVisionModel`` and ``Gemma3MultiModalProjector``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axcore import Stage, selection, vit_stages

from .cards import NORM, PROJECTION, TOWER
from .config import Config


def stages(config: Config) -> tuple[Stage, ...]:
    """Return tower and projector, parameters on the meta device."""
    side = config.vision_config.side
    whole = selection(range(side), side)
    keys = {"norm": NORM, "projection": PROJECTION}
    return (
        *vit_stages(TOWER, config.vision_config, whole, whole),
        Stage("projector", Projector(config), keys),
    )


class Projector(nn.Module):
    """State to tokens: float ``[1, side**2, hidden]`` to ``[1, N, text width]``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        vit = config.vision_config
        self.side, self.pooled, self.eps = vit.side, config.pooled, vit.layer_norm_eps
        width, text = vit.hidden_size, config.text_config.hidden_size
        self.norm = nn.Parameter(torch.empty(width, device="meta"))
        self.projection = nn.Parameter(torch.empty(width, text, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Average squares of patches, normalise them, and project them."""
        square = x.transpose(1, 2).reshape(1, -1, self.side, self.side)
        rows = F.avg_pool2d(square, self.pooled).flatten(2).transpose(1, 2)
        root = torch.sqrt((rows * rows).mean(-1, keepdim=True) + self.eps)
        return (rows / root * (1 + self.norm)) @ self.projection
