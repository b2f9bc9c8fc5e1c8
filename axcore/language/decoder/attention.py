"""Grouped-query attention over a history and the chunk behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...language_model import Cache
from .norms import RMSNorm

if TYPE_CHECKING:
    from ..rotary import Rotary


@dataclass(frozen=True)
class Heads:
    """The form of an attention.

    Attributes:
        hidden: Width of the state.
        heads, kv_heads, head_dim: Query heads, key/value heads, width of a head.
        scale: Factor of the scores.
        cap: Scores are squeezed between -cap and cap; None leaves them.
        bias, out_bias: Whether q, k and v, and o have biases.
        norms: Whether queries and keys have norms, head by head.
        eps, zero_centred: Of these norms.
        gate: Whether q gives, behind the values of each head, a gate for its output.
        rotary: None for a layer without positions.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cap: float | None
    bias: bool
    out_bias: bool
    norms: bool
    eps: float
    zero_centred: bool
    gate: bool
    rotary: Rotary | None


class Attention(nn.Module):
    """Grouped-query attention over a history and the chunk behind it.

    Source: transformers, ``LlamaAttention`` and its descendants.
    """

    def __init__(self, form: Heads) -> None:
        super().__init__()
        self.form = form
        wide, narrow = form.heads * form.head_dim, form.kv_heads * form.head_dim
        queries = 2 * wide if form.gate else wide
        self.q_proj = nn.Linear(form.hidden, queries, form.bias, device="meta")
        self.k_proj = nn.Linear(form.hidden, narrow, form.bias, device="meta")
        self.v_proj = nn.Linear(form.hidden, narrow, form.bias, device="meta")
        self.o_proj = nn.Linear(wide, form.hidden, form.out_bias, device="meta")
        if form.norms:
            self.q_norm = RMSNorm(form.head_dim, form.eps, zero_centred=form.zero_centred)
            self.k_norm = RMSNorm(form.head_dim, form.eps, zero_centred=form.zero_centred)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Keys, rotated, and values of all tokens before."""
        width = self.form.kv_heads * self.form.head_dim
        return Cache("K_cache", (width,)), Cache("V_cache", (width,))

    def forward(
        self, caches: tuple[Tensor, ...], indices: Tensor, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values of the chunk, and what is added to the state.

        Args:
            caches: Keys and values ``[b, h, D]``.
            indices: int64 ``[r, n]``.
            x: Normalised states ``[b * n, H]``.
            mask: Added to the scores, ``[b, n, h + n]``.

        Returns:
            ``[b, n, D]`` twice, and ``[b * n, H]``.
        """
        form, (batch, count, _) = self.form, mask.shape
        kv_heads, width = form.kv_heads, form.head_dim
        q, gate = self._queries(x, batch, count)
        k = self.k_proj(x).reshape(batch, count, kv_heads, width)
        if form.norms:
            q, k = self.q_norm(q), self.k_norm(k)
        if form.rotary:
            cos, sin = rotation(form.rotary, indices)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        value = self.v_proj(x)
        # Query heads that share keys are stacked as rows, so the long history is not repeated.
        shared = (batch, count, kv_heads, form.heads // kv_heads, width)
        query = (q * form.scale).reshape(shared).permute(0, 2, 3, 1, 4)
        query = query.reshape(batch, kv_heads, -1, width)
        past, old, new = (self._heads(t, batch) for t in (*caches, value))
        scores = torch.cat([query @ past.mT, query @ k.transpose(1, 2).mT], -1)
        if form.cap is not None:
            scores = torch.tanh(scores / form.cap) * form.cap
        grouped = scores.reshape(batch, kv_heads, -1, count, scores.shape[-1])
        weights = torch.softmax(grouped + mask[:, None, None], -1).reshape(scores.shape)
        length = caches[0].shape[1]
        seen = weights[..., :length] @ old + weights[..., length:] @ new
        seen = seen.reshape(batch, kv_heads, -1, count, width).permute(0, 3, 1, 2, 4)
        joined = seen.reshape(-1, form.heads * width)
        if gate is not None:
            joined = joined * torch.sigmoid(gate)
        rows = (t.reshape(batch, -1, kv_heads * width) for t in (k, value))
        return (*rows, self.o_proj(joined))

    def _queries(self, x: Tensor, batch: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Return queries ``[b, n, heads, head_dim]`` and the gate ``[b * n, heads * head_dim]``."""
        form, made = self.form, self.q_proj(x)
        if not form.gate:
            return made.reshape(batch, count, form.heads, form.head_dim), None
        both = made.reshape(batch, count, form.heads, 2 * form.head_dim)
        queries, gate = both[..., : form.head_dim], both[..., form.head_dim :]
        return queries, gate.reshape(-1, form.heads * form.head_dim)

    def _heads(self, rows: Tensor, batch: int) -> Tensor:
        """View ``[..., D]`` as ``[batch, kv_heads, rows, head_dim]``."""
        split = rows.reshape(batch, -1, self.form.kv_heads, self.form.head_dim)
        return split.transpose(1, 2)


def rotation(rotary: Rotary, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine ``[n, 1, rotated]``; the sine's first half is negated.

    Args:
        rotary: The frequencies.
        indices: int64 ``[r, n]``.
    """
    frequencies = torch.tensor(rotary.frequencies, dtype=torch.float32)
    rows = rotary.sections
    positions = indices[0][:, None] if rows is None else indices[list(rows)].T
    angles = positions.float() * frequencies
    cos, sin = (f(angles) * rotary.factor for f in (torch.cos, torch.sin))
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``[n, heads, width]``; values beyond the width of `cos` stay as they are."""
    rotated = cos.shape[-1]
    half, rest = rotated // 2, x[..., rotated:]
    turned = torch.cat([x[..., half:rotated], x[..., :half]], -1)
    if rotated == x.shape[-1]:
        return x * cos + turned * sin
    return torch.cat([x[..., :rotated] * cos + turned * sin, rest], -1)
