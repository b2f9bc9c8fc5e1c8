"""Names and shapes of Llama-shaped decoders, held against transformers' own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from axcore import affine_tensors, llama_tensors

CLASSES: dict[str, tuple[Any, Any, dict[str, bool]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"qkv_bias": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"qk_norm": True}),
}
FLAGS = {
    "llama": ("attention_bias", "mlp_bias", "tie_word_embeddings"),
    "qwen2": ("tie_word_embeddings",),
    "qwen3": ("attention_bias", "tie_word_embeddings"),
}


@st.composite
def configs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Draw sizes that all differ where they may, and every flag that the class reads."""
    shared, head_dim = draw(st.sampled_from([1, 2])), draw(st.sampled_from([4, 6]))
    kv_heads = draw(st.sampled_from([1, 3]))
    # Qwen2 has no head size of its own.
    own = kind != "qwen2" and draw(st.booleans())
    return {
        "hidden_size": 48 if own else kv_heads * shared * head_dim,
        "intermediate_size": 26,
        "num_hidden_layers": draw(st.integers(0, 2)),
        "num_attention_heads": kv_heads * shared,
        "num_key_value_heads": kv_heads,
        **({"head_dim": head_dim} if own or kind == "qwen3" else {}),
        "vocab_size": 50,
        **{flag: draw(st.booleans()) for flag in FLAGS[kind]},
    }


@pytest.mark.parametrize("kind", CLASSES)
@given(data=st.data())
@settings(max_examples=25)
def test_names_and_shapes_are_those_of_the_class(kind: str, data: st.DataObject) -> None:
    """Grouped heads, head sizes, biases, norms and tied heads.

    Oracle: the parameters of transformers' class, on the meta device.
    """
    config = data.draw(configs(kind))
    make_config, make_model, arguments = CLASSES[kind]
    with torch.device("meta"):
        model = make_model(make_config(**config))
    expected = {f"llm.{name}": tuple(p.shape) for name, p in model.named_parameters()}
    assert llama_tensors(config, "llm.", **arguments) == expected


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 4, device="meta"), (4, 6)),
        (nn.Conv2d(3, 5, 2, device="meta"), (5, 3, 2, 2)),
        (nn.LayerNorm(7, device="meta"), (7,)),
    ],
)
def test_a_bias_has_the_first_length_of_its_weight(
    module: nn.Module, shape: tuple[int, ...]
) -> None:
    """Of projections, convolutions and norms. Oracle: torch's modules."""
    expected = {f"a.{name}": tuple(p.shape) for name, p in module.named_parameters()}
    assert affine_tensors("a", *shape) == expected
