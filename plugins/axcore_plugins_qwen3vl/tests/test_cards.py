"""What the cards promise about the published checkpoints, and what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import axcore_plugins_qwen3vl as plugin
import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from axcore import AxcoreError, Options, Silent
from axcore.checkpoint import fabricate
from axcore.pipeline.job import open_job
from axcore.request import Request

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import ModelCard, Registry

CARDS = {card.id: card for card in plugin.model_cards()}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_keys_and_shapes_are_those_of_the_model_class(card: ModelCard) -> None:
    """Names on disk, shapes and their sum at full size.

    Oracle: transformers' class on the meta device, and the published number of parameters.
    """
    assert card.layout.tensors is not None
    shapes = card.layout.tensors(card.published.config)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**card.published.config))
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    renamed = {
        disk[0] + key.removeprefix(canonical): shape
        for key, shape in shapes.items()
        for canonical, disk in card.layout.prefixes.items()
        if key.startswith(canonical)
    }
    assert renamed == expected
    assert sum(map(math.prod, shapes.values())) == card.parameters


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_profile_holds_its_images(card: ModelCard) -> None:
    """A prompt has room for the image tokens of its profile. Oracle: 32 x 32 px a token."""
    for profile in card.profiles.values():
        tokens = profile.images * profile.height * profile.width // 1024
        assert tokens < profile.max_prompt <= profile.kv_cache_len + 1, asdict(profile)


def test_special_tokens_have_their_published_ids() -> None:
    """Of every model; a small one has them all within its vocabulary. Oracle: the tokenizer's."""
    names = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad")
    published = dict(zip(names, (151643, 151644, 151645, 151652, 151653, 151654), strict=True))
    published |= {"image_pad": 151655, "video_pad": 151656}
    for card in CARDS.values():
        assert card.published.tokens is not None
        found = card.published.tokens(card.published.config)
        assert {name: found[f"<|{name}|>"] for name in published} == published
        small = card.published.tokens(card.published.tiny_config)
        assert small.keys() == found.keys()
        assert len(set(small.values())) == len(small)
        assert max(small.values()) < card.published.tiny["text_config"]["vocab_size"]


def edited(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return `config` with one value replaced."""
    name, _, rest = path.partition(".")
    return {**config, name: edited(config[name], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("vision_config.deepstack_visual_indexes", [1, 0], "do not ascend"),
        ("vision_config.deepstack_visual_indexes", [0, 3], "below depth 3"),
        ("vision_config.deepstack_visual_indexes", ["0"], "deepstack_visual_indexes"),
        ("vision_config.num_position_embeddings", 80, "no square"),
        ("vision_config.out_hidden_size", 32, "hidden_size 64"),
        ("vision_config.patch_size", 14, "patch_size"),
        ("vision_config.hidden_act", "silu", "hidden_act"),
        ("vision_config.num_heads", 3, "no multiple of 4"),
        ("text_config.num_hidden_layers", 1, "1 layers of the language model"),
        ("image_token_id", None, "image_token_id"),
    ],
)
def test_a_config_that_is_not_computed_is_refused(
    registry: Registry, tmp_path: Path, path: str, value: object, said: str
) -> None:
    """By its path in the file. Oracle: the value that was edited."""
    folder = fabricate(CARDS["qwen3-vl-2b"], "tiny", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(edited(config, path, value)))
    with pytest.raises(AxcoreError, match=said):
        open_job(Request.of(str(folder), options=Options()), registry, Silent())


def test_a_foreign_or_cut_checkpoint_is_refused(registry: Registry, tmp_path: Path) -> None:
    """Tensors of another depth, and a shard that ends early. Oracle: what was changed."""
    folder = fabricate(CARDS["qwen3-vl-2b"], "tiny", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    deeper = edited(config, "vision_config.depth", 4)
    (folder / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(AxcoreError, match=r"visual\.blocks\.3"):
        open_job(Request.of(str(folder), options=Options()), registry, Silent())
    (folder / "config.json").write_text(json.dumps(config))
    (shard,) = folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(AxcoreError, match=shard.name):
        open_job(Request.of(str(folder), options=Options()), registry, Silent())
