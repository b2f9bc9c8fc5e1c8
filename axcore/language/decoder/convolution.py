"""Causal convolutions over the last few tokens, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...language_model import Cache

CACHE = "conv_state"
"""Name of the cache: the last tokens before a chunk, float ``[kernel - 1, width]``."""


def tokens_of(mask: Tensor) -> Tensor:
    """Tell tokens from the padding behind them.

    Args:
        mask: ``[b, n, h + n]``; 0 on the diagonal of the last n columns says that it is a token.

    Returns:
        float ``[b, n]``: 1 for tokens, 0 for padding.
    """
    batch, count, width = mask.shape
    own = torch.arange(count, device=mask.device) + (width - count)
    diagonal = torch.gather(mask, 2, own[None, :, None].expand(batch, count, 1))
    return (diagonal[..., 0] > -1).to(mask.dtype)


def convolve(state: Tensor, x: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve a chunk behind what came before it.

    Args:
        state: The last kernel - 1 tokens before, ``[b, kernel - 1, width]``.
        x: The chunk, ``[b, n, width]``.
        weight: ``[width, 1, kernel]``.
        tokens: See `tokens_of`.

    Returns:
        ``[b, n, width]``, and the state behind the last token.

    Source: transformers, ``causal_conv1d_update``.
    """
    count, kernel = x.shape[1], weight.shape[-1]
    line = torch.cat([state, x], 1)
    taps = (line[:, tap : tap + count] * weight[:, 0, tap] for tap in range(kernel))
    # Padding stands at the end, so the last tokens end where the number of tokens says.
    ends = tokens.sum(1, keepdim=True).to(torch.int64) + torch.arange(kernel - 1)
    kept = torch.gather(line, 1, ends[..., None].expand(-1, -1, line.shape[-1]))
    return sum(taps, start=torch.zeros(())), kept


class ShortConvolution(nn.Module):
    """A convolution over a few tokens, between two gates.

    Args:
        hidden: Width of the state.
        kernel: Tokens that a token sees, itself included.
        bias: Whether projections and convolution have biases.

    Source: transformers, ``Lfm2ShortConv``.
    """

    def __init__(self, hidden: int, kernel: int, *, bias: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias, device="meta")
        self.conv = nn.Conv1d(hidden, hidden, kernel, groups=hidden, bias=bias, device="meta")
        self.out_proj = nn.Linear(hidden, hidden, bias, device="meta")

    @property
    def caches(self) -> tuple[Cache, ...]:
        """What enters the convolution, of the last tokens."""
        return (Cache(CACHE, (self.conv.kernel_size[0] - 1, self.conv.in_channels), grows=False),)

    def forward(
        self, caches: tuple[Tensor, ...], indices: Tensor, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the new state and what is added to the state of the layer.

        Args:
            caches: The convolution's state ``[b, kernel - 1, H]``.
            indices: Unused: there are no positions.
            x: Normalised states ``[b * n, H]``.
            mask: ``[b, n, h + n]``.
        """
        del indices
        batch, count, _ = mask.shape
        hidden = x.shape[-1]
        both = self.in_proj(x).reshape(batch, count, 3 * hidden)
        before, after, value = (both[..., i * hidden : (i + 1) * hidden] for i in range(3))
        made, state = convolve(caches[0], before * value, self.conv.weight, tokens_of(mask))
        if self.conv.bias is not None:
            made = made + self.conv.bias
        return state, self.out_proj((after * made).reshape(-1, hidden))
