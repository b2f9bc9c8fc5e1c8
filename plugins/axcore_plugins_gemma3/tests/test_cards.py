"""What the card promises about the published checkpoint, and which configs it recognises."""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import axcore
from axcore import CheckpointError
from axcore.checkpoint import canonical_key, fabricate
from axcore.testing import check_family

from .conftest import CARD, Family, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Registry

GENERAL: Any = Gemma3ForConditionalGeneration


def test_hooks_keep_their_promises(registry: Registry, tmp_path: Path) -> None:
    """The laws of every family. Oracle: the core's conformance kit."""
    check_family("gemma3", out=tmp_path, registry=registry)


def test_keys_and_shapes_are_those_of_the_model_class() -> None:
    """At full size, and they add up to the published number of parameters.

    Oracle: transformers' class on the meta device; the total of the model page.
    """
    with torch.device("meta"):
        model = GENERAL(Gemma3Config(**CARD.published.config))
    expected = {
        canonical_key(name, CARD.layout.prefixes): tuple(value.shape)
        for name, value in model.named_parameters()
    }
    assert CARD.layout.tensors is not None
    shapes = CARD.layout.tensors(CARD.published.config)
    assert shapes == expected
    assert sum(map(math.prod, shapes.values())) == CARD.parameters


def test_a_fabricated_checkpoint_is_a_published_one(tmp_path: Path) -> None:
    """Names on disk are the published ones. Oracle: transformers loads it, nothing left over."""
    folder = fabricate(CARD, "tiny", tmp_path / "tiny")
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "language_model.model.embed_tokens.weight" in names
    assert "vision_tower.vision_model.post_layernorm.bias" in names
    assert "multi_modal_projector.mm_soft_emb_norm.weight" in names
    _, info = GENERAL.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_model_is_recognised(registry: Registry) -> None:
    """Published, small, and as transformers writes it. Oracle: whose config it is."""
    written = Gemma3Config(**CARD.published.config).to_dict()
    named = {**written, "architectures": list(CARD.architectures)}
    for config in (CARD.published.config, CARD.published.tiny_config, named):
        assert registry.recognise(config, "config.json").card.id == CARD.id


def test_special_tokens_have_their_published_ids() -> None:
    """At full size, and all distinct in a small checkpoint. Oracle: config and tokenizer."""
    assert CARD.published.tokens is not None
    made = CARD.published.tokens(CARD.published.config)
    assert (made["<bos>"], made["<start_of_turn>"], made["<end_of_turn>"]) == (2, 105, 106)
    assert (made["<start_of_image>"], made["<end_of_image>"]) == (255_999, 256_000)
    assert made["<image_soft_token>"] == 262_144
    small = CARD.published.tokens(CARD.published.tiny_config)
    assert len({*small.values()}) == len(made)


def another(folder: Path, out: Path, name: str, content: Any) -> str:
    """Link a checkpoint, with another JSON file."""
    for path in folder.iterdir():
        if path.name != name:
            (out / path.name).symlink_to(path)
    (out / name).write_text(json.dumps(content))
    return str(out)


@pytest.mark.parametrize(
    ("path", "value", "evidence"),
    [
        ("mm_tokens_per_image", 15, "mm_tokens_per_image: 15 is no square"),
        ("mm_tokens_per_image", 25, "divides 8"),
        ("vision_config.image_size", 113, "vision_config.image_size: 113 px"),
        ("vision_config.vision_use_head", True, "vision_config.vision_use_head"),
        ("vision_config.vision_use_head", None, "vision_config.vision_use_head"),
        ("vision_config.num_hidden_layers", 10**6, "vision_config.num_hidden_layers"),
        ("text_config.model_type", "gemma2", "text_config.model_type"),
        ("text_config.num_hidden_layers", 10**6, "text_config.num_hidden_layers"),
        ("tie_word_embeddings", False, "tie_word_embeddings"),
    ],
)
def test_a_config_of_another_model_is_refused(
    family: Family, registry: Registry, tmp_path: Path, path: str, value: Any, evidence: str
) -> None:
    """Oracle: the field that was changed."""
    config = copy.deepcopy(small_config())
    *parents, name = path.split(".")
    part = config
    for parent in parents:
        part = part[parent]
    part[name] = value
    with pytest.raises(CheckpointError, match=evidence):
        axcore.plan(another(family.checkpoint, tmp_path, "config.json", config), registry=registry)


@pytest.mark.parametrize("key", ["mm_input_projection_weight", "mm_soft_emb_norm.weight"])
@pytest.mark.parametrize("kind", ["missing", "narrow", "foreign", "truncated"])
def test_another_checkpoint_is_refused(
    family: Family, registry: Registry, tmp_path: Path, kind: str, key: str
) -> None:
    """A tensor is missing, of another shape, or too many; the file ends early. Oracle: its name."""
    for path in family.checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    weights = tmp_path / "model.safetensors"
    tensors, content = load_file(weights), weights.read_bytes()
    weights.unlink()
    name = f"model.multi_modal_projector.{key}"
    evidence = {"foreign": "foreign", "truncated": "model.safetensors"}.get(kind, key)
    if kind == "missing":
        tensors.pop(name)
    elif kind == "narrow":
        tensors[name] = tensors[name][:-1].clone()
    else:
        tensors["foreign"] = tensors[name].clone()
    save_file(tensors, weights)
    if kind == "truncated":
        weights.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=evidence):
        axcore.plan(str(tmp_path), registry=registry)
