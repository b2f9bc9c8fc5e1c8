"""A family names its embedding once: what finds the layers is told of it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import axcore
from axcore import Registry
from axcore.bundle import MANIFEST, Bundle
from axcore.checkpoint import Checkpoint
from axcore.checkpoint.fabricate import fabricate
from axcore.pipeline.build import open_decoder
from axcore.progress import Silent
from axcore.runtime.deployment import Deployment
from axcore.runtime.language import Embeddings

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


TABLES = FAMILY.replace(
    "    return Embedding(EMBEDDING, job.checkpoint.info(EMBEDDING).shape)",
    "    first = Embedding(EMBEDDING, job.checkpoint.info(EMBEDDING).shape)\n"
    "    return [first, replace(first, name='more', scale=0.5)]\n\n"
    "export_vision = base.export_vision",
)


def test_named_tables_are_converted_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hook to rows: a file for each table, its columns behind the embedding's.

    Oracle: the tensor of the checkpoint, which serves as both.
    """
    install(tmp_path / "site", "tables", TABLES)
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry = Registry()
    checkpoint = fabricate(registry.find("named-1b").card, "tiny", tmp_path / "checkpoint")
    options = axcore.Options(height=56, width=56)
    axcore.convert(
        str(checkpoint), tmp_path / "out", family="tables", options=options, verify=False,
        registry=registry,
    )  # fmt: skip
    sys.modules.pop("axcore_tables")
    assert (tmp_path / "out" / "more.table.bfloat16.bin").exists()
    deployment = Deployment.open(tmp_path / "out", registry)
    (table,) = deployment.tables
    assert (table.name, table.scale) == ("more", 0.5)
    with Checkpoint.open(checkpoint) as opened:
        expected = opened.tensor(EMBEDDING).float().numpy()[[3, 1]]
    found = Embeddings(deployment).rows(np.array([3, 1]))
    np.testing.assert_array_equal(found, np.concatenate([expected, expected / 2], 1))


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
