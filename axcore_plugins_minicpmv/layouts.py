"""Names and shapes of tensors that several checkpoints of the family share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import affine_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Shape


def siglip(prefix: str, vision: Mapping[str, Any], depth: int) -> dict[str, Shape]:
    """Return the tensors of a SigLIP tower below `prefix`.

    Args:
        prefix: E.g. ``vpm.``.
        vision: ``vision_config``.
        depth: Layers stored.

    Source: transformers, ``SiglipVisionTransformer`` without its pooling head.
    """
    hidden, inner, patch = (
        vision[name] for name in ("hidden_size", "intermediate_size", "patch_size")
    )
    positions = (vision["image_size"] // patch) ** 2
    shapes: dict[str, Shape] = {
        **affine_tensors(prefix + "embeddings.patch_embedding", hidden, 3, patch, patch),
        prefix + "embeddings.position_embedding.weight": (positions, hidden),
    }
    for index in range(depth):
        layer = f"{prefix}encoder.layers.{index}."
        shapes |= {
            **attention(layer, hidden),
            **affine_tensors(layer + "layer_norm2", hidden),
            **affine_tensors(layer + "mlp.fc1", inner, hidden),
            **affine_tensors(layer + "mlp.fc2", hidden, inner),
        }
    return {**shapes, **affine_tensors(prefix + "post_layernorm", hidden)}


def attention(prefix: str, hidden: int) -> dict[str, Shape]:
    """Return the tensors of SigLIP's attention, and of the norm before it."""
    shapes = affine_tensors(prefix + "layer_norm1", hidden)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= affine_tensors(f"{prefix}self_attn.{name}", hidden, hidden)
    return shapes


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
