"""The gated feed-forward network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
"""By their names in configs."""


class MLP(nn.Module):
    """The gated feed-forward network.

    Args:
        hidden, inner: Widths of the state and inside.
        activation: Name of the gate's, one of `ACTIVATIONS`.
        bias: Whether the three projections have biases.

    Source: transformers, ``LlamaMLP``.
    """

    def __init__(self, hidden: int, inner: int, activation: str, *, bias: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        sizes: dict[str, Any] = {"bias": bias, "device": "meta"}
        self.gate_proj = nn.Linear(hidden, inner, **sizes)
        self.up_proj = nn.Linear(hidden, inner, **sizes)
        self.down_proj = nn.Linear(inner, hidden, **sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, H]`` to ``[n, H]``."""
        result: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return result
