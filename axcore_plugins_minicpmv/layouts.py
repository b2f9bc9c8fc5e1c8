"""Names and shapes of tensors that several checkpoints of the family share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from axcore import Shape

    Tensors = Iterator[tuple[str, Shape]]


def language(config: Mapping[str, Any]) -> Tensors:
    """Yield the tensors of the Llama-shaped language model below ``llm.``."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, vocabulary = config["num_attention_heads"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, config["num_key_value_heads"] * head_dim
    yield "llm.model.embed_tokens.weight", (vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"llm.model.layers.{index}."
        yield layer + "self_attn.q_proj.weight", (queries, hidden)
        yield layer + "self_attn.k_proj.weight", (keys, hidden)
        yield layer + "self_attn.v_proj.weight", (keys, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, queries)
        yield layer + "mlp.gate_proj.weight", (inner, hidden)
        yield layer + "mlp.up_proj.weight", (inner, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, inner)
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
    yield "llm.model.norm.weight", (hidden,)
    yield "llm.lm_head.weight", (vocabulary, hidden)


def resampler(width: int, vision_width: int, queries: int) -> Tensors:
    """Yield the tensors of the resampler but for a stored position table."""
    yield "resampler.query", (queries, width)
    yield "resampler.kv_proj.weight", (width, vision_width)
    yield "resampler.attn.in_proj_weight", (3 * width, width)
    yield "resampler.attn.in_proj_bias", (3 * width,)
    yield from linear("resampler.attn.out_proj", width, width)
    for norm in ("ln_q", "ln_kv", "ln_post"):
        yield from affine(f"resampler.{norm}", width)
    yield "resampler.proj", (width, width)


def linear(key: str, *shape: int) -> Tensors:
    """Yield weight and bias of a projection or convolution."""
    yield key + ".weight", shape
    yield key + ".bias", shape[:1]


def affine(key: str, width: int) -> Tensors:
    """Yield weight and bias of a norm."""
    yield key + ".weight", (width,)
    yield key + ".bias", (width,)
