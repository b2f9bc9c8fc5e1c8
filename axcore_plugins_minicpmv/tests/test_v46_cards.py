"""What the card of MiniCPM-V-4.6 promises about the published checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

from axcore_plugins_minicpmv import v46

if TYPE_CHECKING:
    pass

CARD = v46.card()
TINY = CARD.published.tiny_config
VISION, MERGER = "model.vision_tower.", "model.merger."


def total(prefix: str = "") -> int:
    shapes = v46.tensors(CARD.published.config)
    return sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(prefix))


def test_the_tensors_add_up_to_the_published_model() -> None:
    """Parameters in all, and of each part. Oracle: the published model's totals."""
    assert total(VISION) == 522_299_312
    assert total(MERGER) == 25_967_104
    assert total("model.language_model.") == 752_161_600
    assert total() == CARD.parameters == 1_300_428_016


@pytest.mark.parametrize("tied", [True, False])
def test_keys_and_shapes_are_those_of_the_model_class(tied: bool) -> None:
    """Names and shapes at full size, head tied or not. Oracle: transformers' class, meta device."""
    config = {**CARD.published.config, "tie_word_embeddings": tied}
    with torch.device("meta"):
        model = MiniCPMV4_6ForConditionalGeneration(MiniCPMV4_6Config(**config))
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert v46.tensors(config) == expected


def test_layer_types_may_be_listed() -> None:
    """A list of layer types, as newer transformers write it, means what the interval does.

    Oracle: the config that gives the interval.
    """
    text = dict(TINY["text_config"])
    del text["full_attention_interval"]
    listed = {**text, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    assert v46.tensors({**TINY, "text_config": listed}) == v46.tensors(TINY)


def test_the_config_loads_as_what_it_says() -> None:
    """Our config means the same to the model class. Oracle: transformers' config class."""
    config: Any = MiniCPMV4_6Config(**CARD.published.config)
    assert config.downsample_mode == v46.DOWNSAMPLE.values[0]
    assert config.vision_config.insert_layer_id == CARD.published.config["insert_layer_id"]
    layers = config.text_config.layer_types
    assert [i for i, kind in enumerate(layers) if kind == "full_attention"] == [*range(3, 24, 4)]


def test_a_prompt_has_room_for_an_image_and_its_slices() -> None:
    """Ten times 64 rows, and the cache holds the longest prompt. Oracle: at most nine slices."""
    profile = CARD.profiles["image"]
    assert 10 * 64 < profile.max_prompt == 1280 <= profile.kv_cache_len
