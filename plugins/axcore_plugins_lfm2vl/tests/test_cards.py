"""What the cards promise about the published checkpoints, and which configs they recognise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from axcore.checkpoint import canonical_key

from .conftest import CARDS

if TYPE_CHECKING:
    from axcore import ModelCard, Registry


@pytest.mark.parametrize("later", [False, True], ids=["LFM2", "LFM2.5"])
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_keys_and_shapes_are_those_of_the_model_class(card: ModelCard, later: bool) -> None:
    """At full size, and they add up to the published number of parameters.

    LFM2.5-VL has the same layout without the projector's norm. Oracle: transformers' class on the
    meta device; the totals of the model pages.
    """
    config = {**card.published.config, **({"projector_use_layernorm": False} if later else {})}
    with torch.device("meta"):
        model = Lfm2VlForConditionalGeneration(Lfm2VlConfig(**config))
    expected = {
        canonical_key(name, card.layout.prefixes): tuple(value.shape)
        for name, value in model.named_parameters()
    }
    assert card.layout.tensors is not None
    shapes = card.layout.tensors(config)
    assert shapes == expected
    assert later or sum(map(math.prod, shapes.values())) == card.parameters


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_every_size_is_recognised(registry: Registry, card: ModelCard) -> None:
    """Published, small, and as transformers writes it. Oracle: whose config it is."""
    written = Lfm2VlConfig(**card.published.config).to_dict()
    named = {**written, "architectures": list(card.architectures)}
    for config in (card.published.config, card.published.tiny_config, named):
        assert registry.recognise(config, "config.json").card.id == card.id


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_special_tokens_have_their_published_ids(card: ModelCard) -> None:
    """At full size, and all distinct in a small checkpoint. Oracle: the published tokenizer."""
    assert card.published.tokens is not None
    made = card.published.tokens(card.published.config)
    assert (made["<|im_start|>"], made["<|im_end|>"], made["<image>"]) == (6, 7, 396)
    assert (made["<|img_row_1_col_1|>"], made["<|img_row_1_col_2|>"]) == (397, 398)
    assert (made["<|img_row_10_col_10|>"], made["<|img_thumbnail|>"]) == (496, 497)
    assert (made["<|image_start|>"], made["<|image_end|>"]) == (498, 499)
    small = card.published.tokens(card.published.tiny_config)
    assert len({*small.values()}) == len(made) == 109
