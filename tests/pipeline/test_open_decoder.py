"""A family names its embedding once: what finds the layers is told of it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from axcore import Registry
from axcore.bundle import MANIFEST, Bundle
from axcore.checkpoint.fabricate import fabricate
from axcore.pipeline.build import open_decoder
from axcore.progress import Silent

from ..bundles import install

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDING, HEAD = "text.body.word_table.weight", "text.lm_head.weight"
FAMILY = f"""
from dataclasses import replace

import axcore_plugins_qwen25vl as base
from axcore import Embedding, Layout, hookimpl, llama_tensors

EMBEDDING = {EMBEDDING!r}
CARD = base.model_cards()[0]
VISION = CARD.layout.tensors


def tensors(config):
    text = {{**config.get("text_config", config), "tie_word_embeddings": False}}
    shapes = llama_tensors(text, "text.", qkv_bias=True).items()
    shapes = {{key.replace("text.model.", "text.body."): shape for key, shape in shapes}}
    shapes[EMBEDDING] = shapes.pop("text.body.embed_tokens.weight")
    vision = VISION(config).items()
    return {{**shapes, **{{key: shape for key, shape in vision if key.startswith("visual.")}}}}


@hookimpl
def model_cards():
    layout = replace(CARD.layout, tensors=tensors, prefixes={{}}, text_prefixes=("text.",))
    return [replace(CARD, id="named-1b", aliases=(), repo="a/Named-1B", layout=layout)]


@hookimpl
def embed_extract(job):
    return Embedding(EMBEDDING, job.checkpoint.info(EMBEDDING).shape)
"""


def test_the_default_decoder_begins_beside_the_embedding(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers, last norm and a head of its own are found. Oracle: the keys of the checkpoint."""
    install(tmp_path / "site", "named", FAMILY)
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry = Registry()
    checkpoint = fabricate(registry.find("named-1b").card, "tiny", tmp_path / "checkpoint")
    sys.modules.pop("axcore_named")
    data = json.loads((converted / MANIFEST).read_text())
    data["model"] |= {"id": "named-1b", "family": "named", "plugin": "axcore-named 1"}
    data["checkpoint"] |= {"folder": str(checkpoint), "fingerprint": ""}
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    decoder = open_decoder(Bundle.open(tmp_path), registry, Silent())
    head = {weight for origin in decoder.head.weights().values() for weight in origin.keys()}
    assert head == {"text.body.norm.weight", HEAD}
    used = {key for s in decoder.layers for w in s.weights().values() for key in w.keys()}
    text = {key for key in decoder.checkpoint.tensors if key.startswith("text.")}
    assert used | head | {EMBEDDING} == text
