"""Names and shapes of tensors that several checkpoints of the family share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axcore import affine_tensors

if TYPE_CHECKING:
    from axcore import Shape


def resampler(width: int, vision_width: int, queries: int) -> dict[str, Shape]:
    """Return the tensors of the resampler, without the position table that MiniCPM-V-2 stores."""
    return {
        "resampler.query": (queries, width),
        "resampler.kv_proj.weight": (width, vision_width),
        "resampler.attn.in_proj_weight": (3 * width, width),
        "resampler.attn.in_proj_bias": (3 * width,),
        **affine_tensors("resampler.attn.out_proj", width, width),
        **affine_tensors("resampler.ln_q", width),
        **affine_tensors("resampler.ln_kv", width),
        **affine_tensors("resampler.ln_post", width),
        "resampler.proj": (width, width),
    }
