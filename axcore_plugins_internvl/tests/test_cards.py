"""What the cards promise about the published checkpoints, and which configs they recognise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import InternVLForConditionalGeneration

from axcore import PluginNotFound, UnsupportedModel
from axcore.checkpoint import canonical_key

from .conftest import CARDS, native_config

if TYPE_CHECKING:
    from axcore import ModelCard, Registry

WHERE = "config.json"
TOTALS = {
    "internvl3.5-1b": (657, 596_049_920, 155_582_464, 5_253_120),
    "internvl3.5-2b": (657, 1_720_574_976, 311_164_928, 12_595_200),
    "internvl3-1b": (637, 493_798_016, 135_899_904, 4_482_816),
    "internvl3-2b": (685, 1_543_311_872, 232_971_264, 8_662_016),
}
VISION = 304_012_288
"""Tensors; parameters of the language model with its embedding, of the head, of the projector."""


def parameters(card: ModelCard, *prefixes: str) -> int:
    assert card.layout.tensors is not None
    shapes = card.layout.tensors(card.published.config)
    return sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(prefixes))


@pytest.mark.parametrize("name", TOTALS)
def test_the_tensors_add_up_to_the_published_checkpoint(name: str) -> None:
    """Number of tensors, parameters of each part and of the whole.

    Oracle: the totals of the published model pages. For InternVL3-1B by hand: Qwen2.5-0.5B has
    494,032,768 parameters, and here 262 rows of 896 less in its table.
    """
    card = CARDS[name]
    count, language, head, projector = TOTALS[name]
    assert card.layout.tensors is not None
    assert len(card.layout.tensors(card.published.config)) == count
    assert parameters(card, "vision_model.") == VISION
    assert parameters(card, "mlp1.") == projector
    assert parameters(card, "language_model.model.") == language
    assert parameters(card, "language_model.lm_head.") == head
    assert card.parameters == VISION + projector + language + head


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_keys_and_shapes_are_those_of_the_model_class(card: ModelCard) -> None:
    """Names and shapes of the native layout at full size. Oracle: transformers' class.

    It lives on the meta device, so its names are those in memory.
    """
    config = native_config(card.published.config)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    expected = {
        canonical_key(name, card.layout.prefixes): tuple(value.shape)
        for name, value in model.named_parameters()
    }
    assert card.layout.tensors is not None
    assert card.layout.tensors(config.to_dict()) == expected


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_every_layout_and_size_is_recognised(registry: Registry, card: ModelCard) -> None:
    """The published config, its native form and both small ones. Oracle: whose they are."""
    for remote in (card.published.config, card.published.tiny_config):
        native = {**native_config(remote).to_dict(), "architectures": [card.architectures[1]]}
        for config in (remote, native):
            assert registry.recognise(config, WHERE).card.id == card.id


def changed(top: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """Return the published config of InternVL3.5-1B with changes."""
    config = CARDS["internvl3.5-1b"].published.config
    parts = {
        "vision_config": {**config["vision_config"], **vision},
        "llm_config": {**config["llm_config"], **text},
    }
    return {**config, **parts, **top}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (changed({"flash_mode": True, "flash_relative_threshold": 0.1}, {}, {}), "Flash"),
        (changed({"architectures": ["InternVLFlashForConditionalGeneration"]}, {}, {}), "Flash"),
        (changed({}, {}, {"hidden_size": 2560, "num_hidden_layers": 36}), "InternVL3_5-4B"),
        (
            changed(
                {},
                {"hidden_size": 3200, "norm_type": "rms_norm", "qk_normalization": True},
                {"hidden_size": 5120, "num_hidden_layers": 64},
            ),
            "InternVL3_5-38B",
        ),
        (changed({}, {}, {"model_type": "internlm2"}), "internvl-other"),
        (changed({"ps_version": "v1"}, {}, {}), "internvl-other"),
        (changed({}, {"qk_normalization": True}, {}), "internvl-other"),
        ({"architectures": ["InternVLChatModel"]}, "internvl-other"),
        ({"architectures": ["InternVLChatModel"], "llm_config": 3}, "internvl-other"),
    ],
)
def test_another_variant_is_refused_by_name(
    registry: Registry, config: dict[str, Any], name: str
) -> None:
    """The error names the variant, the hint what is supported. Oracle: the change made."""
    with pytest.raises(UnsupportedModel, match=name) as caught:
        registry.recognise(config, WHERE)
    assert "OpenGVLab/InternVL3_5-1B, OpenGVLab/InternVL3_5-2B" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["internvl3.5-1b-flash", "OpenGVLab/InternVL3_5-8B-Flash", "OpenGVLab/InternVL3_5-4B"]
)
def test_a_variant_is_refused_by_its_id_as_well(registry: Registry, name: str) -> None:
    """`convert internvl3.5-1b-flash` says no; none of them is listed. Oracle: the four cards."""
    with pytest.raises(UnsupportedModel):
        registry.find(name)
    with pytest.raises(PluginNotFound):
        registry.find("internvl9")
    assert {entry.card.id for entry in registry.entries} == set(CARDS)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_special_tokens_have_their_published_ids(card: ModelCard) -> None:
    """At full size, and all within the vocabulary of a small checkpoint.

    Oracle: the published tokenizers of Qwen2.5 and Qwen3, each with three tokens behind its own.
    """
    first = 151669 if card.id.startswith("internvl3.5") else 151665
    turns = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    brackets = {"<img>": first, "</img>": first + 1, "<IMG_CONTEXT>": first + 2}
    assert card.published.tokens is not None
    assert card.published.tokens(card.published.config) == {**turns, **brackets}
    small = card.published.tokens(card.published.tiny_config)
    assert small.keys() == {*turns, *brackets}
    assert len(set(small.values())) == 6
    assert max(small.values()) < card.published.tiny_config["llm_config"]["vocab_size"]
    end = {"internvl3.5": "<|im_end|>", "internvl3": "<|endoftext|>"}[card.id.rpartition("-")[0]]
    for config, ids in ((card.published.config, {**turns}), (card.published.tiny_config, small)):
        assert config["llm_config"]["eos_token_id"] == ids[end]
