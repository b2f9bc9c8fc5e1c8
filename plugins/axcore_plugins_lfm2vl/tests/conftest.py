"""A small checkpoint as transformers saves it, and a bundle that answers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from axcore_plugins_lfm2vl.cards import cards
from PIL import Image
from safetensors.torch import save_file
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

import axcore
from axcore import Options, Registry
from axcore.checkpoint import fabricate
from axcore.runtime.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from axcore import Prompt

CARDS = {card.id: card for card in cards()}
CARD = CARDS["lfm2-vl-450m"]
HEIGHT, WIDTH, PATCH = 64, 96, 16  # px; 6 tokens a tile
CHUNK, CACHE = 32, 255
HISTORIES = (32, 64, 96, 128, 160, 192)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a smooth image with edges: noise enlarged, so that resizing has work to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def pixels(tiles: Sequence[np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """Return what the oracle is given of tiles: rows of patches, all of them valid."""
    if not tiles:
        return {}
    stacked = torch.from_numpy(np.stack(tiles)).float() / 127.5 - 1
    count, height, width, _ = stacked.shape
    grid = (height // PATCH, width // PATCH)
    split = stacked.reshape(count, grid[0], PATCH, grid[1], PATCH, 3).transpose(2, 3)
    return {
        "pixel_values": split.reshape(count, grid[0] * grid[1], -1),
        "pixel_attention_mask": torch.ones(count, grid[0] * grid[1], dtype=torch.int32),
        "spatial_shapes": torch.tensor([grid] * count),
    }


@pytest.fixture(scope="session")
def model() -> Any:
    """The oracle: transformers' class, every parameter random and a bfloat16 number."""
    made: Any = Lfm2VlForConditionalGeneration(Lfm2VlConfig(**CARD.published.tiny_config))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in made.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = 2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        drawn = centre + spread * torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn.bfloat16().float()
    return made.eval()


@pytest.fixture(scope="session")
def registry() -> Registry:
    """This family alone, whatever else is installed."""
    return Registry([EntryPoint("lfm2vl", "axcore_plugins_lfm2vl", "axcore")])


@pytest.fixture(scope="session")
def checkpoint(model: Any, once: Callable[..., Path]) -> Path:
    """The model by the published names, with the tokenizer of a fabricated one."""

    def make(out: Path) -> None:
        fabricate(CARD, "tiny", out)
        tensors = {
            name.replace("vision_tower.", "vision_tower.vision_model."): value.bfloat16()
            for name, value in model.state_dict().items()
            if name != "lm_head.weight"
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors")

    return once("lfm2vl-checkpoint", make)


@dataclass(frozen=True)
class Family:
    """A bundle built in float32, and its oracle."""

    model: Any
    folder: Path
    runner: Runner

    def generated(self, prompt: Prompt, count: int) -> list[int]:
        """Ask the oracle: its own positions, its own caches and states."""
        end = self.model.config.text_config.eos_token_id
        tokens = torch.from_numpy(prompt.input_ids)[None]
        tiles = [sample["pixel_values"] for sample in prompt.images["vision"]]
        with torch.no_grad():
            out = self.model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), **pixels(tiles),
                max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=[end, 2],
            )  # fmt: skip
        new: list[int] = out[0, tokens.shape[1] :].tolist()
        return new[:-1] if new[-1] in (end, 2) else new


@pytest.fixture(scope="session")
def family(model: Any, checkpoint: Path, registry: Registry, once: Callable[..., Path]) -> Family:
    options = Options(
        height=HEIGHT, width=WIDTH, prefill_len=CHUNK, kv_cache_len=CACHE,
        last_kv_cache_len=HISTORIES,
    )  # fmt: skip

    def make(out: Path) -> None:
        axcore.convert(str(checkpoint), out, options=options, verify=False, registry=registry)
        axcore.build(out, toolchain="onnx", options={"exact": "float32"}, registry=registry)

    folder = once("lfm2vl", make)
    return Family(model, folder, Runner.open(folder, registry))
