"""One small model in both layouts: as transformers saves it, and renamed to the remote names."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from axcore import Options, Registry, Silent
from axcore.pipeline.job import open_job
from axcore.request import Request
from axcore_plugins_internvl.cards import cards, tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from axcore import Job

CARDS = {card.id: card for card in cards()}
PUBLISHED = CARDS["internvl3.5-1b"].published.files["preprocessor_config.json"]
MODELS = ("internvl3.5-1b", "internvl3-1b")  # one before each kind of language model

# The published correspondence of names, native to remote.
RENAMED = (
    (r"^vision_tower\.", "vision_model."),
    (r"\.cls_token$", ".class_embedding"),
    (r"\.position_embeddings$", ".position_embedding"),
    (r"\.patch_embeddings\.projection\.", ".patch_embedding."),
    (r"\.encoder\.layer\.", ".encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_", ".ls"),
    (r"^multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"^multi_modal_projector\.linear_1", "mlp1.1"),
    (r"^multi_modal_projector\.linear_2", "mlp1.3"),
)


def native_config(config: Mapping[str, Any]) -> InternVLConfig:
    """Return what describes the model of a remote config to transformers."""
    vision, text = config["vision_config"], config["llm_config"]
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    more = ("model_type", "num_key_value_heads", "vocab_size", "rms_norm_eps", "eos_token_id")
    limits = ("max_position_embeddings", *({"head_dim"} & text.keys()))
    scaling = text.get("rope_scaling") or {"rope_type": "default"}
    rotary = {name: value for name, value in scaling.items() if name != "type"}
    return InternVLConfig(
        vision_config={name: vision[name] for name in same} | {"attention_bias": True},
        text_config={name: text[name] for name in same + more + limits}
        | {"rope_parameters": {**rotary, "rope_theta": text["rope_theta"]}},
        tie_word_embeddings=False,
        image_token_id=tokens(config)["<IMG_CONTEXT>"],
    )


def remote_tensors(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a native checkpoint and join query, key and value."""
    found = {}
    for key, value in native.items():
        name = key
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".attention.q_proj." in name:
            parts = [native[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
        elif not re.search(r"\.attention\.[kv]_proj\.", name):
            found[name] = value
    return {key: value.contiguous() for key, value in found.items()}


def random_model(config: Mapping[str, Any]) -> Any:
    """Return transformers' model with every parameter random, each a bfloat16 number."""
    model: Any = InternVLForConditionalGeneration(native_config(config))
    generator = torch.Generator().manual_seed(7)
    for key, parameter in model.named_parameters():
        centre = 1.0 if "norm" in key and key.endswith("weight") else 0.0
        spread = parameter[0].numel() ** -0.5 if parameter.ndim in (2, 4) else 0.2
        drawn = centre + spread * torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn.bfloat16().float()
    return model.eval()


class Family:
    """A model in both layouts.

    Attributes:
        model: The oracle: transformers' own class, in float32.
        folders: Layout to checkpoint folder, bfloat16 as published.
    """

    def __init__(self, name: str, root: Path) -> None:
        config = CARDS[name].published.tiny_config
        self.model = random_model(config)
        self.folders = {layout: root / layout for layout in ("native", "remote")}
        # A copy, as what the model computes with beside its parameters would be rounded too.
        deepcopy(self.model).bfloat16().save_pretrained(self.folders["native"])
        self.folders["remote"].mkdir()
        (self.folders["remote"] / "config.json").write_text(json.dumps(config))
        native = load_file(self.folders["native"] / "model.safetensors")
        save_file(remote_tensors(native), self.folders["remote"] / "model.safetensors")

    def job(self, layout: str, registry: Registry, **options: Any) -> Job:
        request = Request.of(str(self.folders[layout]), options=Options(**options))
        return open_job(request, registry, Silent())


@pytest.fixture(scope="session")
def registry() -> Registry:
    """This family alone, whatever else is installed."""
    return Registry([EntryPoint("internvl", "axcore_plugins_internvl", "axcore")])


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {name: Family(name, tmp_path_factory.mktemp(name)) for name in MODELS}


@pytest.fixture
def family(families: dict[str, Family]) -> Family:
    return families[MODELS[0]]


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a smooth image with edges: noise enlarged, so that resizing has work to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def processor(side: int, tiles: int) -> GotOcr2ImageProcessorPil:
    """The oracle: the processor of the native layout, which cuts and adds the whole image."""
    return GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=PUBLISHED["image_mean"],
        image_std=PUBLISHED["image_std"],
        crop_to_patches=True,
        max_patches=max(tiles - 1, 1),
    )
