"""Root-mean-square norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis, with weights.

    Args:
        width: Length of the last axis.
        eps: Added to the mean square.
        zero_centred: Whether to multiply by 1 + weight.
    """

    def __init__(self, width: int, eps: float, *, zero_centred: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="meta"))
        self.eps, self.zero_centred = eps, zero_centred

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., width]``."""
        weight = self.weight + 1 if self.zero_centred else self.weight
        return weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps))


class GatedRMSNorm(RMSNorm):
    """An `RMSNorm` whose result is multiplied by a gate.

    Source: transformers, ``FusedRMSNormGated`` and what replaces it.
    """

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Normalise ``[..., width]`` and multiply by the SiLU of a gate of the same shape."""
        normed = super().forward(x)
        return normed if gate is None else normed * F.silu(gate)
