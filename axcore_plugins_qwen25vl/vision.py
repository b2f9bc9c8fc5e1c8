"""The vision tower as static modules: patch embedding, window and full blocks, merger.

The state between stages is one float tensor ``[N, hidden]``, a row per patch in window order:
windows of equal size follow one another, so that they can be attended as one batch, and the
merger undoes the order. Upstream interleaves full windows with the narrower ones of the right and
bottom edge; the tokens are the same, because the order of windows does not affect attention. For
a fixed image size, every index, angle and mask is a constant.

Source: transformers, ``Qwen2_5_VisionTransformerPretrainedModel``.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axcore import Stage, Weight, axial_rotation, cell_places, rotated

if TYPE_CHECKING:
    from collections.abc import Mapping

EPS = 1e-6  # upstream's constant, not in config.json
MASKED = -1e4  # finite, so that float16 can hold it

Runs = tuple[tuple[int, int], ...]
"""Consecutive windows of equal size: how many, and patches in each."""


def stages(config: Mapping[str, Any], height: int, width: int) -> tuple[Stage, ...]:
    """Return the tower for images of one size, parameters on the meta device.

    Args:
        config: The checkpoint's ``vision_config``.
        height: Image height in px, a multiple of a merged cell (28 px).
        width: Image width in px, likewise.
    """
    merge = config["spatial_merge_size"]
    cell_px = config["patch_size"] * merge
    rows, columns = height // cell_px, width // cell_px
    groups = windows(rows, columns, config["window_size"] // cell_px)
    order = torch.cat([group.flatten() for group in groups])
    runs = tuple((len(group), group.shape[1] * merge**2) for group in groups)
    cos, sin = rope_tables(config, rows, columns, order)
    hidden = config["hidden_size"]
    embedding = Weight("visual.patch_embed.proj.weight").reshape(hidden, -1)
    chain = [Stage("patch_embed", PatchEmbed(config, order), {"proj.weight": embedding})]
    for index in range(config["depth"]):
        full = index in config["fullatt_block_indexes"]
        attend = Windowed(((1, len(cos)),)) if full else Masked(runs)
        block = Block(config, cos, sin, attend)
        kind = "full_block" if full else "window_block"
        chain.append(Stage(f"blocks.{index}", block, f"visual.blocks.{index}.", kind))
    return *chain, Stage("merger", Merger(config, order), "visual.merger.")


def windows(rows: int, columns: int, side: int) -> list[Tensor]:
    """Cut a grid of merged cells into windows, grouped by size.

    Args:
        rows: Merged cells down the image.
        columns: Merged cells across it.
        side: Merged cells along a whole window; those at the right and bottom edge may be cut.

    Returns:
        int64 ``[windows, cells]`` for every size met: the cells, numbered row by row, of each
        window.
    """
    cells = torch.arange(rows * columns).reshape(rows, columns)
    groups = defaultdict(list)
    for band in torch.split(cells, side):
        for window in torch.split(band, side, dim=1):
            groups[window.numel()].append(window.flatten())
    return [torch.stack(group) for group in groups.values()]


def rope_tables(
    config: Mapping[str, Any], rows: int, columns: int, order: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the rotary factors of queries and keys in window order, see `axial_rotation`."""
    merge = config["spatial_merge_size"]
    places = cell_places(rows * merge, columns * merge, merge).reshape(-1, merge**2, 2)
    head_dim = config["hidden_size"] // config["num_heads"]
    return axial_rotation(places[order].reshape(-1, 2), head_dim)


class PatchEmbed(nn.Module):
    """Patches to state: float ``[1, 3, N, 392]``, normalised RGB, to ``[N, hidden]``."""

    order: Tensor

    def __init__(self, config: Mapping[str, Any], order: Tensor) -> None:
        super().__init__()
        self.values = 3 * config["temporal_patch_size"] * config["patch_size"] ** 2
        self.hidden = config["hidden_size"]
        # The convolution's kernel equals its stride: it is a product with the flattened kernel.
        self.proj = nn.Linear(self.values, self.hidden, bias=False, device="meta")
        self.register_buffer("order", order, persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Embed the patches and put them into window order."""
        x: Tensor = self.proj(hidden_states.transpose(1, 2).reshape(-1, self.values))
        cells = x.reshape(len(self.order), -1)
        return cells.index_select(0, self.order).reshape(-1, self.hidden)


class Block(nn.Module):
    """One transformer block, ``[N, hidden]`` to the same."""

    def __init__(
        self, config: Mapping[str, Any], cos: Tensor, sin: Tensor, attend: Windowed | Masked
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config["hidden_size"])
        self.attn = Attention(config, cos, sin, attend)
        self.norm2 = RMSNorm(config["hidden_size"])
        self.mlp = GatedMLP(config["hidden_size"], config["intermediate_size"])

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform every patch by itself."""
        attended: Tensor = x + self.attn(self.norm1(x))
        transformed: Tensor = attended + self.mlp(self.norm2(attended))
        return transformed

    def batched(self) -> Block:
        """Return the block with its windows attended as batches, without a mask."""
        if isinstance(self.attn.attend, Windowed):
            return self
        block = copy.deepcopy(self)
        block.attn.attend = Windowed(self.attn.attend.runs)
        return block


class Attention(nn.Module):
    """Multi-head self-attention with two-dimensional rotary positions."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: Mapping[str, Any], cos: Tensor, sin: Tensor, attend: Windowed | Masked
    ) -> None:
        super().__init__()
        hidden, self.heads = config["hidden_size"], config["num_heads"]
        self.qkv = nn.Linear(hidden, 3 * hidden, device="meta")
        self.proj = nn.Linear(hidden, hidden, device="meta")
        self.attend = attend
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among the patches: ``[N, hidden]`` to the same."""
        count, hidden = x.shape
        heads = (count, self.heads, hidden // self.heads)
        qkv = self.qkv(x).reshape(count, 3, *heads[1:])
        qk = rotated(qkv[:, :2], self.cos, self.sin)
        q, k, v = (part.reshape(heads) for part in (qk[:, :1], qk[:, 1:], qkv[:, 2:]))
        attended = self.attend(q, k, v)
        result: Tensor = self.proj(attended)
        return result


class Windowed(nn.Module):
    """Attention inside windows, those of one size as one batch: nothing to mask."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self.runs = runs

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q, k, v ``[N, heads, head_dim]`` to ``[N, hidden]``."""
        if len(self.runs) == 1:
            return attend(q, k, v, self.runs[0][1])
        stops = itertools.accumulate(count * patches for count, patches in self.runs)
        parts = []
        for stop, (count, patches) in zip(stops, self.runs, strict=True):
            rows = slice(stop - count * patches, stop)
            parts.append(attend(q[rows], k[rows], v[rows], patches))
        return torch.cat(parts)


class Masked(nn.Module):
    """Attention inside windows as one masked matrix ``[N, N]``: the plain form.

    The mask is made from the window of each patch where it is needed, so that describing a tower
    for a large image costs N numbers rather than N squared.
    """

    window: Tensor

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self.runs = runs
        lengths = torch.tensor([patches for count, patches in runs for _ in range(count)])
        window = torch.arange(len(lengths)).repeat_interleave(lengths)
        self.register_buffer("window", window, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q, k, v ``[N, heads, head_dim]`` to ``[N, hidden]``."""
        return attend(q, k, v, len(self.window), self.window[:, None] != self.window)


def attend(q: Tensor, k: Tensor, v: Tensor, patches: int, apart: Tensor | None = None) -> Tensor:
    """Attend within each run of `patches` consecutive rows, in operators for a static graph.

    Args:
        q: Queries, float ``[N, heads, head_dim]``, scaled.
        k: Keys, likewise but not scaled.
        v: Values, likewise.
        patches: Rows of one window; divides N.
        apart: bool ``[patches, patches]``, true where a row must not attend to another.

    Returns:
        float ``[N, heads * head_dim]``.
    """
    count, heads, width = q.shape
    shape = (count // patches, patches, heads, width)
    scores = q.reshape(shape).transpose(1, 2) @ k.reshape(shape).permute(0, 2, 3, 1)
    if apart is not None:
        scores = scores.masked_fill(apart, MASKED)
    seen = scores.softmax(-1) @ v.reshape(shape).transpose(1, 2)
    return seen.transpose(1, 2).reshape(count, heads * width)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 in every precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., width]``."""
        wide = x.float()
        # Not rsqrt: its graph form is Reciprocal, which the target lacks.
        normalised = wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + EPS)
        return self.weight * normalised.to(x.dtype)


class GatedMLP(nn.Module):
    """Two projections, one gating the other through SiLU, and one back."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, device="meta")
        self.up_proj = nn.Linear(hidden, inner, device="meta")
        self.down_proj = nn.Linear(inner, hidden, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Transform every row: ``[N, hidden]`` to the same."""
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Merger(nn.Module):
    """State to tokens: ``[N, hidden]`` to ``[N / 4, out_hidden]``, row by row of the image."""

    restore: Tensor

    def __init__(self, config: Mapping[str, Any], order: Tensor) -> None:
        super().__init__()
        self.merged = config["hidden_size"] * config["spatial_merge_size"] ** 2
        self.ln_q = RMSNorm(config["hidden_size"])
        self.mlp = nn.Sequential(
            nn.Linear(self.merged, self.merged, device="meta"),
            nn.GELU(),
            nn.Linear(self.merged, config["out_hidden_size"], device="meta"),
        )
        self.register_buffer("restore", order.argsort(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge the patches of each cell and undo the window order."""
        tokens: Tensor = self.mlp(self.ln_q(x).reshape(-1, self.merged))
        return tokens.index_select(0, self.restore)
