"""What the cards promise about the published checkpoints, and which configs they recognise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from axcore.checkpoint import canonical_key

from .conftest import CARDS

if TYPE_CHECKING:
    from axcore import ModelCard, Registry


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_keys_and_shapes_are_those_of_the_model_class(card: ModelCard) -> None:
    """At full size, and they add up to the published number of parameters.

    Oracle: transformers' class on the meta device; the totals of the model pages.
    """
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(SmolVLMConfig(**card.published.config))
    expected = {
        canonical_key(name, card.layout.prefixes): tuple(value.shape)
        for name, value in model.named_parameters()
    }
    assert card.layout.tensors is not None
    shapes = card.layout.tensors(card.published.config)
    assert shapes == expected
    assert sum(map(math.prod, shapes.values())) == card.parameters


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_every_size_is_recognised(registry: Registry, card: ModelCard) -> None:
    """Published, small, and as transformers writes it. Oracle: whose config it is."""
    written = SmolVLMConfig(**card.published.config).to_dict()
    named = {**written, "architectures": list(card.architectures)}
    for config in (card.published.config, card.published.tiny_config, named):
        assert registry.recognise(config, "config.json").card.id == card.id


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_special_tokens_have_their_published_ids(card: ModelCard) -> None:
    """At full size, and all distinct in a small checkpoint. Oracle: the published tokenizer."""
    assert card.published.tokens is not None
    made = card.published.tokens(card.published.config)
    assert (made["<global-img>"], made["<image>"]) == (49152, 49190)
    assert (made["<row_1_col_1>"], made["<row_1_col_2>"]) == (49153, 49154)
    assert (made["<row_6_col_6>"], made["<fake_token_around_image>"]) == (49188, 49189)
    assert (
        made["<end_of_utterance>"] == card.published.files["generation_config.json"]["eos_token_id"]
    )
    small = card.published.tokens(card.published.tiny_config)
    assert len({*small.values()}) == len(made) == 43
