"""The default `patch_attention`: fused attention becomes matmul, softmax, matmul."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .older import WrittenOut

if TYPE_CHECKING:
    from ..component import Stage


def explicit(stage: Stage) -> Stage:
    """Return `stage` with every fused attention written out; idempotent.

    Replaced are `torch.nn.functional.scaled_dot_product_attention`, from wherever it is called, and
    `torch.nn.MultiheadAttention` modules. Parameter names stay.
    """
    if isinstance(stage.module, _Unfused):
        return stage
    module = _spell_out(copy.deepcopy(stage.module))
    # Replace the class, not `forward` on the instance: a bound method would keep pointing to this
    # module after a deep copy.
    module.__class__ = type(type(module).__name__, (_Unfused, type(module)), {})
    return replace(stage, module=module)


class _Unfused(nn.Module):
    def forward(self, *state: Tensor) -> Any:
        with WrittenOut({F.scaled_dot_product_attention: attend}):
            return super().forward(*state)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled-dot-product attention in ops that a static graph keeps.

    Args:
        query: ``[..., heads, rows, head_dim]``.
        key, value: ``[..., key_heads, columns, head_dim]``.
        attn_mask: Broadcastable to ``[..., rows, columns]``; boolean (True is visible) or added.
        dropout_p: Ignored, as in evaluation.
        is_causal: Hide the columns after each row.
        scale: Defaults to ``head_dim ** -0.5``.
        enable_gqa: Repeat key and value heads to the number of query heads.

    Source: the reference in the documentation of
    `torch.nn.functional.scaled_dot_product_attention`.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores + _additive(attn_mask, scores.dtype)
    return torch.softmax(scores, -1) @ value


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask with a large finite number: -inf overflows in float16 and ruins quantisation ranges."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -1e4)


class ExplicitMultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` without its fused paths; same parameters, same results.

    Covers self and cross attention of one width with packed projections; an instance of
    any other form is left to torch.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.batch_first = source.batch_first
        self.in_proj_weight, self.in_proj_bias = source.in_proj_weight, source.in_proj_bias
        self.out_proj = source.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend as torch does; the attention weights are not returned.

        Args:
            query, key, value: ``[rows, width]``, or with a batch axis first or second as
                `batch_first` says.
            attn_mask: As in torch: True hides a column.
            key_padding_mask: Must be None: a static graph has no padding columns.
            need_weights, average_attn_weights, is_causal: Accepted for torch's signature.
        """
        assert key_padding_mask is None
        swap = query.dim() == 3 and not self.batch_first
        states = [t.transpose(0, 1) if swap else t for t in (query, key, value)]
        q, k, v = (self._heads(i, t) for i, t in enumerate(states))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask
        joined = attend(q, k, v, attn_mask).transpose(-3, -2).flatten(-2)
        out = self.out_proj(joined)
        return (out.transpose(0, 1) if swap else out), None

    def _heads(self, index: int, state: Tensor) -> Tensor:
        width = self.num_heads * self.head_dim
        rows = slice(index * width, (index + 1) * width)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        projected = F.linear(state, self.in_proj_weight[rows], bias)
        split = (*projected.shape[:-1], self.num_heads, self.head_dim)
        return projected.reshape(split).transpose(-3, -2)


def _spell_out(module: nn.Module) -> nn.Module:
    """Replace fused attention modules in the tree of `module`."""
    if type(module) is nn.MultiheadAttention and _is_plain(module):
        return ExplicitMultiheadAttention(module)
    for name, child in module.named_children():
        setattr(module, name, _spell_out(child))
    return module


def _is_plain(module: nn.MultiheadAttention) -> bool:
    packed = module.in_proj_weight is not None
    return packed and module.bias_k is None and not module.add_zero_attn
