"""Small checkpoints as transformers saves them, and bundles that answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from axcore_plugins_smolvlm2.cards import cards
from PIL import Image
from safetensors.torch import save_file
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

import axcore
from axcore import Options, Registry
from axcore.checkpoint import fabricate
from axcore.runtime.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from axcore import ModelCard

CARDS = {card.id: card for card in cards()}
SIDES = {"smolvlm2-500m": 128, "smolvlm2-2.2b": 84}  # px of a tile: 4 tokens
CHUNK, CACHE = 32, 255
HISTORIES = (32, 64, 96, 128, 160, 192)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a smooth image with edges: noise enlarged, so that resizing has work to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def random_model(card: ModelCard) -> Any:
    """Return the oracle: transformers' class, every parameter random and a bfloat16 number."""
    model: Any = SmolVLMForConditionalGeneration(SmolVLMConfig(**card.published.tiny_config))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = 2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        drawn = centre + spread * torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn.bfloat16().float()
    return model.eval()


def processor(side: int, tiles: int) -> Any:
    """The oracle of tiles: the published processor."""
    return SmolVLMImageProcessorPil(
        size={"longest_edge": tiles * side}, max_image_size={"longest_edge": side}
    )


@dataclass(frozen=True)
class Family:
    """A bundle built in float32, and its oracle.

    Attributes:
        model: Transformers' class.
        checkpoint: What it was converted from.
        folder, runner: The bundle, and what answers from it.
        side: Of a tile in px.
    """

    model: Any
    checkpoint: Path
    folder: Path
    runner: Runner
    side: int

    def pixels(self, images: Sequence[Image.Image], tiles: int) -> dict[str, torch.Tensor]:
        """Return what the oracle is given of images."""
        if not images:
            return {}
        made = processor(self.side, tiles)([list(images)], return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "pixel_attention_mask")}

    def generated(self, ids: np.ndarray[Any, Any], count: int, **given: Any) -> list[int]:
        """Ask the oracle: its own positions and its own caches."""
        end = self.model.config.text_config.vocab_size - 1
        tokens = torch.from_numpy(ids)[None]
        with torch.no_grad():
            out = self.model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), **given,
                max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=[end],
            )  # fmt: skip
        new: list[int] = out[0, tokens.shape[1] :].tolist()
        return new[:-1] if new[-1] == end else new


@pytest.fixture(scope="session")
def registry() -> Registry:
    """This family alone, whatever else is installed."""
    return Registry([EntryPoint("smolvlm2", "axcore_plugins_smolvlm2", "axcore")])


@pytest.fixture(scope="session")
def families(once: Callable[..., Path], registry: Registry) -> Callable[[str], Family]:
    """Return a family by the id of its card; made once for all tests."""
    made: dict[str, Family] = {}

    def family(name: str) -> Family:
        if name not in made:
            card, side = CARDS[name], SIDES[name]
            model = random_model(card)
            checkpoint = once(f"{name}-checkpoint", lambda out: saved(card, model, out))
            bundle = once(name, lambda out: built(checkpoint, out, registry, side))
            made[name] = Family(model, checkpoint, bundle, Runner.open(bundle, registry), side)
        return made[name]

    return family


@pytest.fixture(scope="session")
def family(families: Callable[[str], Family]) -> Family:
    return families("smolvlm2-500m")


def saved(card: ModelCard, model: Any, out: Path) -> None:
    """Write a model in the published layout, with the tokenizer of a fabricated one."""
    fabricate(card, "tiny", out)
    tensors = {name: value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors")
    assert json.loads((out / "config.json").read_text()) == card.published.tiny_config
    settings = json.loads((out / "preprocessor_config.json").read_text())
    settings["size"]["longest_edge"] = 2 * settings["max_image_size"]["longest_edge"]
    (out / "preprocessor_config.json").write_text(json.dumps(settings))


def built(checkpoint: Path, out: Path, registry: Registry, side: int) -> None:
    """Make a bundle whose layer models compute and pass states in float32."""
    options = Options(
        height=side, width=side, prefill_len=CHUNK, kv_cache_len=CACHE, last_kv_cache_len=HISTORIES
    )
    axcore.convert(str(checkpoint), out, options=options, verify=False, registry=registry)
    axcore.build(out, toolchain="onnx", options={"exact": "float32"}, registry=registry)
