"""What the cards promise about the published checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import axcore
import axcore_plugins_qwen25vl as plugin
from axcore.checkpoint import fabricate

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import ModelCard

CARDS = {card.id: card for card in plugin.model_cards()}


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [("qwen2.5-vl-3b", 824, 7_509_245_952), ("qwen2.5-vl-7b", 729, 16_584_333_312)],
)
def test_the_tensors_add_up_to_the_published_checkpoint(name: str, count: int, total: int) -> None:
    """Number of tensors and bytes in bfloat16.

    Oracle: the index of the published shards; the 7B's count follows from its layers.
    """
    card = CARDS[name]
    assert card.layout.tensors is not None
    shapes = card.layout.tensors(card.published.config)
    assert len(shapes) == count
    assert 2 * sum(map(math.prod, shapes.values())) == total == 2 * card.parameters


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_keys_and_shapes_are_those_of_the_model_class(card: ModelCard) -> None:
    """Names and shapes at full size. Oracle: transformers' class on the meta device.

    Its names differ from the published ones by the prefixes that the card lists second.
    """
    import torch

    assert card.layout.tensors is not None
    config = Qwen2_5_VLConfig(**card.published.config)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    renamed = {
        disk[-1] + key.removeprefix(canonical): shape
        for key, shape in card.layout.tensors(card.published.config).items()
        for canonical, disk in card.layout.prefixes.items()
        if key.startswith(canonical)
    }
    assert renamed == expected


def test_a_config_with_nested_text_fields_means_the_same() -> None:
    """Newer transformers write the text fields under `text_config`. Oracle: the flat config."""
    card = CARDS["qwen2.5-vl-3b"]
    assert card.layout.tensors is not None
    text = {key: value for key, value in card.published.config.items() if key != "vision_config"}
    nested = {
        "text_config": text,
        "vision_config": card.published.config["vision_config"],
        "tie_word_embeddings": True,
    }
    assert card.layout.tensors(nested) == card.layout.tensors(card.published.config)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_profile_holds_its_images(card: ModelCard) -> None:
    """A prompt has room for the image tokens of its profile. Oracle: 28 x 28 px a token."""
    for profile in card.profiles.values():
        tokens = profile.images * profile.height * profile.width // 784
        assert tokens < profile.max_prompt <= profile.kv_cache_len + 1, asdict(profile)


def test_special_tokens_have_their_published_ids() -> None:
    """Of every model; a small one has them all within its vocabulary. Oracle: the tokenizer's."""
    names = ("endoftext", "im_start", "im_end", "vision_start", "image_pad", "video_pad")
    published = dict(zip(names, (151643, 151644, 151645, 151652, 151655, 151656), strict=True))
    for card in CARDS.values():
        assert card.published.tokens is not None
        found = card.published.tokens(card.published.config)
        assert {name: found[f"<|{name}|>"] for name in names} == published
        small = card.published.tokens(card.published.tiny_config)
        assert small.keys() == found.keys()
        assert len(set(small.values())) == len(small)
        assert max(small.values()) < card.published.tiny["vocab_size"]


@pytest.mark.parametrize(
    ("task", "published"),
    [("image", "_vision_nchw448"), ("video", "_vision_nhwc")],
)
def test_published_names_and_lengths_are_taken_on_request(
    task: str, published: str, tmp_path: Path
) -> None:
    """Oracle: the names and lengths in Axera's ``infer.py`` and ``infer_video.py``."""
    checkpoint = fabricate(CARDS["qwen2.5-vl-3b"], "tiny", tmp_path / "checkpoint")
    lengths = {"image": (320, 1023, ()), "video": (512, 1023, ())}
    for value, stem in (("default", "_vision"), ("published", published)):
        plan = axcore.plan(str(checkpoint), task=task, names=value, lengths=value)
        assert f"Qwen2.5-VL-3B-Instruct{stem}.onnx" in {file.name for file in plan.files}
        found = (plan.llm.prefill_len, plan.llm.kv_cache_len, plan.llm.last_kv_cache_len)
        assert found == (lengths[task] if value == "published" else (128, 1023, (128, 256, 384)))
    own = axcore.plan(str(checkpoint), task=task, prefill_len=512).llm
    assert (own.prefill_len, own.last_kv_cache_len) == (512, ())
