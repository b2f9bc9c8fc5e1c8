"""The gated delta rule: attention whose memory is a matrix per head, not a row per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...language_model import Cache
from .convolution import CACHE, convolve, tokens_of
from .norms import GatedRMSNorm

_EPS = 1e-6  # of the lengths of queries and keys


@dataclass(frozen=True)
class Memory:
    """The form of a gated delta net.

    Attributes:
        hidden: Width of the state.
        key_heads, key_dim: Heads of queries and keys, and their width.
        value_heads, value_dim: Heads of values, a multiple of the former, and their width.
        kernel: Tokens that the convolution before it sees.
        eps: Of the norm behind it.
        chunk: Tokens of the longest chunk.
    """

    hidden: int
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    kernel: int
    eps: float
    chunk: int


class GatedDeltaNet(nn.Module):
    """A convolution over a few tokens, then the gated delta rule.

    Source: transformers, the classes called ``GatedDeltaNet`` of hybrid models.
    """

    def __init__(self, form: Memory) -> None:
        super().__init__()
        self.form = form
        keys, values = form.key_heads * form.key_dim, form.value_heads * form.value_dim
        width = 2 * keys + values
        self.conv1d = nn.Conv1d(width, width, form.kernel, groups=width, bias=False, device="meta")
        self.dt_bias = nn.Parameter(torch.empty(form.value_heads, device="meta"))
        self.A_log = nn.Parameter(torch.empty(form.value_heads, device="meta"))
        self.norm = GatedRMSNorm(form.value_dim, form.eps)
        self.out_proj = nn.Linear(values, form.hidden, bias=False, device="meta")
        self.in_proj_qkv = nn.Linear(form.hidden, width, bias=False, device="meta")
        self.in_proj_z = nn.Linear(form.hidden, values, bias=False, device="meta")
        self.in_proj_b = nn.Linear(form.hidden, form.value_heads, bias=False, device="meta")
        self.in_proj_a = nn.Linear(form.hidden, form.value_heads, bias=False, device="meta")

    @property
    def caches(self) -> tuple[Cache, ...]:
        """What enters the convolution, of the last tokens; and the memory, a matrix per head."""
        form = self.form
        memory = (form.value_heads, form.key_dim, form.value_dim)
        return (
            Cache(CACHE, (form.kernel - 1, self.conv1d.in_channels), grows=False),
            Cache("recurrent_state", memory, grows=False, dtype="float32"),
        )

    def forward(
        self, caches: tuple[Tensor, ...], indices: Tensor, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return both new states and what is added to the state of the layer.

        Args:
            caches: The convolution's state ``[b, kernel - 1, C]`` and the memory
                ``[b, value_heads, key_dim, value_dim]``.
            indices: Unused: there are no positions.
            x: Normalised states ``[b * n, H]``.
            mask: ``[b, n, h + n]``.
        """
        del indices
        form, (batch, count, _) = self.form, mask.shape
        tokens = tokens_of(mask)
        mixed = self.in_proj_qkv(x).reshape(batch, count, -1)
        mixed, state = convolve(caches[0], mixed, self.conv1d.weight, tokens)
        query, key, value = self._split(F.silu(mixed), batch, count)
        # Padding neither writes into the memory nor lets it fade.
        strength, fading = (
            (gate.reshape(batch, count, -1) * tokens[..., None]).transpose(1, 2)
            for gate in (
                torch.sigmoid(self.in_proj_b(x)),
                -self.A_log.exp() * F.softplus(self.in_proj_a(x) + self.dt_bias),
            )
        )
        seen, memory = delta_rule(query, key, value, fading, strength, caches[1], form.chunk)
        gate = self.in_proj_z(x).reshape(-1, form.value_dim)
        normed = self.norm(seen.transpose(1, 2).reshape(-1, form.value_dim), gate)
        return state, memory, self.out_proj(normed.reshape(batch * count, -1))

    def _split(self, mixed: Tensor, batch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values ``[b, value_heads, n, width]``.

        Queries and keys have the length 1, and queries are divided by the root of their width.
        """
        form = self.form
        keys = form.key_heads * form.key_dim
        parts = []
        for start in (0, keys):
            part = mixed[..., start : start + keys].reshape(batch, count, form.key_heads, -1)
            part = part / torch.sqrt((part * part).sum(-1, keepdim=True) + _EPS)
            shared = form.value_heads // form.key_heads
            part = part[:, :, :, None].expand(-1, -1, -1, shared, -1)
            parts.append(part.reshape(batch, count, form.value_heads, form.key_dim))
        value = mixed[..., 2 * keys :].reshape(batch, count, form.value_heads, form.value_dim)
        query, key = parts
        query = query * form.key_dim**-0.5
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    fading: Tensor,
    strength: Tensor,
    memory: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Let each token fade the memory, correct what it holds for the token's key, and read it.

    Token by token, with S the memory: S = exp(fading) S; S = S + key (strength (value - key S));
    output = query S. Here all tokens of a chunk at once: what each writes solves a triangular
    system, as in transformers' ``torch_chunk_gated_delta_rule``. A chunk of one token is the plain
    recurrence.

    Args:
        query, key: ``[b, heads, n, key_dim]``, keys of length 1.
        value: ``[b, heads, n, value_dim]``.
        fading: Logarithm of what remains, at most 0, ``[b, heads, n]``.
        strength: Between 0 and 1, ``[b, heads, n]``.
        memory: S before the chunk, ``[b, heads, key_dim, value_dim]``.
        chunk: n is not greater.

    Returns:
        Outputs ``[b, heads, n, value_dim]`` and S behind the chunk.
    """
    number = torch.arange(query.shape[2], device=query.device)
    faded = torch.cumsum(fading, -1)
    # Of what token j wrote, exp(faded[i] - faded[j]) remains when token i reads.
    between = faded[..., :, None] - faded[..., None, :]
    earlier = number[:, None] >= number
    remains = torch.where(earlier, between, -torch.inf).exp()
    strong = key * strength[..., None]
    system = (strong @ key.mT) * remains
    solved = unit_lower_inverse(system, number, chunk)
    from_start = faded.exp()[..., None]
    written = solved @ (value * strength[..., None] - (strong * from_start) @ memory)
    seen = (query * from_start) @ memory + ((query @ key.mT) * remains) @ written
    total = faded[..., -1:]
    kept = memory * total.exp()[..., None]
    return seen, kept + (key * (total - faded).exp()[..., None]).mT @ written


def unit_lower_inverse(system: Tensor, number: Tensor, most: int) -> Tensor:
    """Invert I + L, L being what stands below the diagonal of `system`.

    Blocks on the diagonal are inverted, then pairs of them: with A and D inverted already, the
    inverse of [[A, 0], [C, D]] has -D C A below. That is as accurate as substitution, unlike the
    power series of L, whose terms grow beyond all digits where keys are alike.

    Args:
        system: ``[..., n, n]``; what is on and above the diagonal is not read.
        number: int64 ``[n]``: 0 to n - 1.
        most: n is not greater.
    """
    torch._check(len(number) <= most)  # type: ignore[no-untyped-call]
    inverse = (number[:, None] == number).to(system.dtype)
    block = number
    for level in range((most - 1).bit_length()):
        # Rows and columns of different blocks that become one on this level.
        parent = torch.div(block, 2, rounding_mode="trunc")
        joined = (parent[:, None] == parent) & (block[:, None] > block)
        corner = system * joined.to(system.dtype)
        inverse = inverse - (inverse @ corner @ inverse if level else corner)
        block = parent
    return inverse
