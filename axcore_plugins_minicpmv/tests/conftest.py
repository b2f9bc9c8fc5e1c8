"""Random checkpoints of the small layouts, and the family alone in a registry."""

from __future__ import annotations

import json
import math
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from axcore import Registry
from axcore.checkpoint import fabricate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from axcore import ModelCard


class MakeCheckpoint(Protocol):
    """Writes a checkpoint of a card's small layout; `change` overrides fields of its config."""

    def __call__(self, card: ModelCard, folder: Path, **change: Any) -> Path: ...


@pytest.fixture(scope="session")
def registry() -> Registry:
    """This family alone, whatever else is installed."""
    return Registry([EntryPoint("minicpmv", "axcore_plugins_minicpmv", "axcore")])


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """Return a writer of checkpoints whose values are large enough to show mistakes."""

    def make(card: ModelCard, folder: Path, **change: Any) -> Path:
        fabricate(card, "tiny", folder)  # for its tokenizer
        config = {**card.published.tiny_config, **change}
        (folder / "config.json").write_text(json.dumps(config))
        weights = {key: value.bfloat16() for key, value in random_weights(card, config).items()}
        save_file(weights, folder / "model.safetensors")
        return folder

    return make


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a smooth image with edges: noise enlarged, so that resizing has work to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def random_weights(card: ModelCard, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return float32 tensors of a card's layout: norms near 1, biases and matrices around 0."""
    generator = torch.Generator().manual_seed(5)
    assert card.layout.tensors is not None
    found = {}
    for key, shape in card.layout.tensors(config).items():
        centre = 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0
        spread = 0.2 if len(shape) == 1 else shape[-1] ** -0.5
        found[key] = centre + spread * torch.randn(shape, generator=generator)
    return found


def llama(config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Any:
    """The oracle: transformers' Llama, with MiniCPM's scales where the published code has them."""
    names = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "num_hidden_layers", "head_dim", "vocab_size", "rms_norm_eps", "max_position_embeddings",
    )  # fmt: skip
    rotary = config["rope_scaling"] or {"rope_type": "default"}
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            **{name: config[name] for name in names if name in config},
            rope_parameters={**rotary, "rope_theta": config["rope_theta"]},
            tie_word_embeddings=False,
        )
    )
    weights = {k.removeprefix("llm."): v for k, v in stored.items() if k.startswith("llm.")}
    model.load_state_dict(weights)
    if "scale_emb" in config:
        residual = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
        narrow = config["hidden_size"] / config["dim_model_base"]
        embedding = model.get_input_embeddings()
        embedding.register_forward_hook(lambda *given: given[-1] * config["scale_emb"])
        for layer in model.model.layers:
            for part in (layer.self_attn.o_proj, layer.mlp):
                part.register_forward_hook(lambda *given: given[-1] * residual)
        model.lm_head.register_forward_pre_hook(lambda _, given: (given[0] / narrow,))
    return model.eval()
