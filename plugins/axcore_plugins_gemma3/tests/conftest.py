"""A small checkpoint as transformers saves it, and a bundle of it that answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from axcore_plugins_gemma3.cards import cards
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

import axcore
from axcore import Options, Registry
from axcore.checkpoint import fabricate
from axcore.runtime.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

(CARD,) = cards()
SIDE, TOKENS, WINDOW = 112, 16, 10  # px, tokens of an image, and fewer that a token sees
CHUNK, CACHE = 32, 255
HISTORIES = (32, 64, 96, 128, 160)
ENDS = [1, 106]


def small_config() -> dict[str, Any]:
    """Return the config of a small checkpoint: its images have fewer tokens than published."""
    tiny = CARD.published.tiny_config
    vision = {**tiny["vision_config"], "image_size": SIDE, "patch_size": 14}
    text = {**tiny["text_config"], "sliding_window": WINDOW}
    parts = {"vision_config": vision, "text_config": text}
    return {**tiny, **parts, "mm_tokens_per_image": TOKENS}


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a smooth image with edges: noise enlarged, so that resizing has work to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def random_model() -> Any:
    """Return the oracle: transformers' class, every parameter random and a bfloat16 number."""
    model: Any = Gemma3ForConditionalGeneration(Gemma3Config(**small_config()))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        layer_norm = "vision_tower" in name and "norm" in name and name.endswith("weight")
        spread = 2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        if "embed_tokens" in name:  # small, so that answers depend on what attention makes of them
            spread /= 10
        drawn = layer_norm + spread * torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn.bfloat16().float()
    return model.eval()


def processor(folder: Path) -> Any:
    """The oracle of prompts and pixels: the published processor, on this tokenizer."""
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(tokenizer_file=str(folder / "tokenizer.json"), extra_special_tokens=named)
    images = Gemma3ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Gemma3Processor(images, tokenizer, image_seq_length=TOKENS)


@dataclass(frozen=True)
class Family:
    """A bundle built in float32, and its oracle.

    Attributes:
        model: Transformers' class.
        checkpoint: What it was converted from.
        folder, runner: The bundle, and what answers from it.
    """

    model: Any
    checkpoint: Path
    folder: Path
    runner: Runner

    def given(self, text: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return what the oracle is given of a text with ``<start_of_image>`` in it."""
        made = processor(self.checkpoint)(
            text=text, images=list(images) or None, add_special_tokens=False, return_tensors="pt"
        )
        return {name: value for name, value in made.items() if name != "num_crops"}

    def generated(self, given: dict[str, torch.Tensor], count: int) -> list[int]:
        """Ask the oracle: its own masks, positions and caches."""
        with torch.no_grad():
            out = self.model.generate(
                **given, max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=ENDS
            )
        new: list[int] = out[0, given["input_ids"].shape[1] :].tolist()
        return new[:-1] if new[-1] in ENDS else new


@pytest.fixture(scope="session")
def registry() -> Registry:
    """This family alone, whatever else is installed."""
    return Registry([EntryPoint("gemma3", "axcore_plugins_gemma3", "axcore")])


@pytest.fixture(scope="session")
def family(once: Callable[..., Path], registry: Registry) -> Family:
    """Made once for all tests."""
    model = random_model()
    checkpoint = once("gemma3-checkpoint", lambda out: saved(model, out))
    bundle = once("gemma3", lambda out: built(checkpoint, out, registry))
    return Family(model, checkpoint, bundle, Runner.open(bundle, registry))


def saved(model: Any, out: Path) -> None:
    """Write a model as transformers names its tensors, with the tokenizer of a fabricated one."""
    fabricate(CARD, "tiny", out)
    tensors = {
        name: value.bfloat16().contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # it is the embedding
    }
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(small_config()))
    settings = json.loads((out / "preprocessor_config.json").read_text())
    settings |= {"image_seq_length": TOKENS, "size": {"height": SIDE, "width": SIDE}}
    (out / "preprocessor_config.json").write_text(json.dumps(settings))


def built(checkpoint: Path, out: Path, registry: Registry) -> None:
    """Make a bundle whose layer models compute and pass states in float32."""
    options = Options(
        height=SIDE, width=SIDE, prefill_len=CHUNK, kv_cache_len=CACHE, last_kv_cache_len=HISTORIES
    )
    axcore.convert(str(checkpoint), out, options=options, verify=False, registry=registry)
    axcore.build(out, toolchain="onnx", options={"exact": "float32"}, registry=registry)
