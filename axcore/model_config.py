"""What a ``config.json`` must be like, and where it has the language model's part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from .limits import COUNT, LAYERS
from .plain import Between, parse, shown

TEXT_PARTS = ("text_config", "llm_config")
"""The names under which layouts nest the language model's part."""

Count = Annotated[int, Between(1, COUNT)]
"""A number of things other than layers."""

Layers = Annotated[int, Between(1, LAYERS)]
"""A number of layers, each of which makes a stage."""

Positive = Annotated[float, Between(1e-30, 1e30)]
"""An epsilon, a base of frequencies, a scale."""

Number = Annotated[int, Between(0, LAYERS)]
"""The index of a layer, or how many of them."""

Kernel = Annotated[int, Between(2, 64)]
"""Tokens that a convolution sees."""

Token = Annotated[int, Between(0, COUNT)]
"""The id of a token."""


def config_parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the language model's part of a config, where one is nested, and then the whole."""
    nested = [config[name] for name in TEXT_PARTS if isinstance(config.get(name), Mapping)]
    return [*nested, config]


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a config: nested in some layouts, flat in others."""
    return config_parts(config)[0]


def check_config(config: Mapping[str, Any], kind: type | None) -> None:
    """Check the values that follow from the config, before lists of their length are made.

    Args:
        config: ``config.json``.
        kind: The dataclass that a family gives, see `axcore.Layout`.

    Raises:
        ValueError: A value is missing or another than can be converted; the message names its path.
    """
    for name in TEXT_PARTS:
        if not isinstance(config.get(name, {}), Mapping):
            raise ValueError(f"{name}: {shown(config[name])} is not an object")
    if kind is not None:
        parse(kind, config)
    text = text_config(config)
    try:
        parse(TextConfig, text)
    except ValueError as error:
        place = next((f"{name}." for name in TEXT_PARTS if config.get(name) is text), "")
        raise ValueError(f"{place}{error}") from error


@dataclass(frozen=True)
class Rotary:
    """How rotary positions are scaled: ``rope_scaling``, or ``rope_parameters``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    attention_factor: Positive | None = None
    long_factor: tuple[Positive, ...] | None = None
    short_factor: tuple[Positive, ...] | None = None
    original_max_position_embeddings: Count | None = None
    mrope_section: tuple[Count, ...] | None = None
    mrope_interleaved: bool | None = None
    partial_rotary_factor: Positive | None = None


@dataclass(frozen=True)
class Rotaries(Rotary):
    """The same, or one for each type of layer."""

    full_attention: Rotary | None = None
    sliding_attention: Rotary | None = None


@dataclass(frozen=True)
class TextConfig:
    """What is read of any language model's part, by the names of transformers."""

    hidden_size: Count
    num_hidden_layers: Layers
    model_type: str | None = None
    vocab_size: Count | None = None
    intermediate_size: Count | tuple[Count, ...] | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str | None = None
    rms_norm_eps: Positive | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None
    max_position_embeddings: Count | None = None
    rope_theta: Positive | None = None
    rope_scaling: Rotary | None = None
    rope_parameters: Rotaries | None = None
    rope_local_base_freq: Positive | None = None
    partial_rotary_factor: Positive | None = None
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Layers | None = None
    sliding_window: Count | None = None
    sliding_window_pattern: Layers | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Number | None = None
    layer_types: tuple[str, ...] | None = None
    full_attention_interval: Layers | None = None
    full_attn_idxs: tuple[Number, ...] | None = None
    hidden_activation: str | None = None
    norm_eps: Positive | None = None
    attention_multiplier: Positive | None = None
    embedding_multiplier: Positive | None = None
    logits_scaling: Positive | None = None
    residual_multiplier: Positive | None = None
    query_pre_attn_scalar: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    conv_L_cache: Kernel | None = None  # noqa: N815
    block_ff_dim: Count | None = None
    block_auto_adjust_ff_dim: bool | None = None
    block_ffn_dim_multiplier: Positive | None = None
    block_multiple_of: Count | None = None
    linear_conv_kernel_dim: Kernel | None = None
    linear_key_head_dim: Count | None = None
    linear_value_head_dim: Count | None = None
    linear_num_key_heads: Count | None = None
    linear_num_value_heads: Count | None = None
    dim_model_base: Count | None = None
    scale_depth: Positive | None = None
    scale_emb: Positive | None = None
    bos_token_id: Token | None = None
    eos_token_id: Token | tuple[Token, ...] | None = None

    def __post_init__(self) -> None:
        types, layers = self.layer_types, self.num_hidden_layers
        if types is not None and len(types) != layers:
            raise ValueError(f"layer_types: {len(types)} are listed for {layers} layers")
        rotated = self.no_rope_layers
        if rotated is not None and len(rotated) not in (0, layers):
            raise ValueError(f"no_rope_layers: {len(rotated)} are listed for {layers} layers")
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if heads and shared and heads % shared:
            raise ValueError(f"num_attention_heads: {heads} is no multiple of {shared} (key/value)")
