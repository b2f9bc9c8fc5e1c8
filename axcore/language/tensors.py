"""Names and shapes of tensors that many published checkpoints have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .layer_types import FULL, layer_types

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..component import Shape


def llama_tensors(
    config: Mapping[str, Any],
    prefix: str = "",
    *,
    qkv_bias: bool = False,
    qk_norm: bool = False,
) -> dict[str, Shape]:
    """Return name and shape of every tensor of a decoder built like Llama.

    With H = ``hidden_size``, I = ``intermediate_size``, V = ``vocab_size``, Q and K the number of
    query and key/value heads times the head size ``head_dim`` (H / heads where the config has
    none)::

        model.embed_tokens.weight                                 [V, H]
        model.layers.N.input_layernorm.weight                     [H]
        model.layers.N.post_attention_layernorm.weight            [H]
        model.layers.N.self_attn.q_proj.weight                    [Q, H]
        model.layers.N.self_attn.k_proj.weight, v_proj.weight     [K, H]
        model.layers.N.self_attn.o_proj.weight                    [H, Q]
        model.layers.N.self_attn.q_norm.weight, k_norm.weight     [head_dim]
        model.layers.N.mlp.gate_proj.weight, up_proj.weight       [I, H]
        model.layers.N.mlp.down_proj.weight                       [H, I]
        model.norm.weight                                         [H]
        lm_head.weight                                            [V, H]

    With ``attention_bias`` in the config, q, k, v and o have biases; with ``mlp_bias``, the MLP's
    projections; with ``tie_word_embeddings`` there is no head. Two properties of later
    architectures follow from the architecture alone, without a field in the config; they are
    arguments.

    Args:
        config: The language model's part of ``config.json``.
        prefix: Put before every name, e.g. ``language_model.``.
        qkv_bias: The architecture has biases on q, k and v.
        qk_norm: The architecture normalises queries and keys, head by head.

    Source: transformers, ``LlamaForCausalLM`` and the classes derived from it.
    """
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, Shape] = {prefix + "model.embed_tokens.weight": (vocabulary, hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = f"{prefix}model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        shapes.update(_attention(layer + "self_attn.", config, qkv_bias, qk_norm))
        shapes.update(_mlp(layer + "mlp.", config))
    shapes[prefix + "model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes[prefix + "lm_head.weight"] = (vocabulary, hidden)
    return shapes


def affine_tensors(name: str, *shape: int) -> dict[str, Shape]:
    """Return name and shape of weight and bias of a projection, convolution or norm.

    >>> affine_tensors("visual.norm", 8)
    {'visual.norm.weight': (8,), 'visual.norm.bias': (8,)}

    Args:
        name: Of the module.
        shape: Of the weight; the bias has its first length.
    """
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _attention(
    prefix: str, config: Mapping[str, Any], qkv_bias: bool, qk_norm: bool
) -> Iterator[tuple[str, Shape]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    bias = bool(config.get("attention_bias"))
    for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield from _linear(prefix + name, width, hidden, bias or qkv_bias)
    yield from _linear(prefix + "o_proj", hidden, queries, bias)
    if qk_norm:
        yield prefix + "q_norm.weight", (head_dim,)
        yield prefix + "k_norm.weight", (head_dim,)


def _mlp(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    bias = bool(config.get("mlp_bias"))
    yield from _linear(prefix + "gate_proj", inner, hidden, bias)
    yield from _linear(prefix + "up_proj", inner, hidden, bias)
    yield from _linear(prefix + "down_proj", hidden, inner, bias)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield name + ".weight", (rows, columns)
    if bias:
        yield name + ".bias", (rows,)


def delta_tensors(config: Mapping[str, Any], prefix: str = "") -> dict[str, Shape]:
    """Return name and shape of every tensor of a decoder whose layers mostly attend linearly.

    Most layers are gated delta nets (``linear_attn``); the others have gated attention with norms
    of queries and keys (``self_attn``). All have an MLP like Llama's.

    Args:
        config: The language model's part of ``config.json``, with ``linear_*`` sizes; whose type
            each layer is says ``layer_types`` or ``full_attention_interval``.
        prefix: Put before every name, e.g. ``model.``.

    Source: transformers, the classes with ``linear_attention`` among their ``layer_types``.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, Shape] = {
        prefix + "embed_tokens.weight": (config["vocab_size"], hidden),
        prefix + "norm.weight": (hidden,),
    }
    for index, kind in enumerate(layer_types(config)):
        layer = f"{prefix}layers.{index}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
            **(_gated_attention if kind == FULL else _delta_net)(config, layer),
        }
    return shapes


def _gated_attention(config: Mapping[str, Any], layer: str) -> dict[str, Shape]:
    hidden, width = config["hidden_size"], config["head_dim"]
    queries, keys = width * config["num_attention_heads"], width * config["num_key_value_heads"]
    part = layer + "self_attn."
    return {
        part + "q_proj.weight": (2 * queries, hidden),  # every head's query and gate
        part + "k_proj.weight": (keys, hidden),
        part + "v_proj.weight": (keys, hidden),
        part + "o_proj.weight": (hidden, queries),
        part + "q_norm.weight": (width,),
        part + "k_norm.weight": (width,),
    }


def _delta_net(config: Mapping[str, Any], layer: str) -> dict[str, Shape]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    part = layer + "linear_attn."
    return {
        part + "A_log": (heads,),
        part + "dt_bias": (heads,),
        part + "conv1d.weight": (2 * keys + values, 1, config["linear_conv_kernel_dim"]),
        part + "norm.weight": (config["linear_value_head_dim"],),
        part + "in_proj_qkv.weight": (2 * keys + values, hidden),
        part + "in_proj_z.weight": (values, hidden),
        part + "in_proj_a.weight": (heads, hidden),
        part + "in_proj_b.weight": (heads, hidden),
        part + "out_proj.weight": (hidden, values),
    }
