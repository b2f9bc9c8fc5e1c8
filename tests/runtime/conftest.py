"""Toy models: graphs of one node, and a language model with attention, caches and shape groups."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from ml_dtypes import bfloat16
from onnx import helper

from axcore import Embedding, LlmBuildArgs, Registry
from axcore.bundle import Bundle, CheckpointRecord
from axcore.runtime.deployment import EMBEDDING_FILE, Deployment

Array = np.ndarray[Any, Any]

WIDTH, CACHE_WIDTH, VOCABULARY = 8, 4, 32
LAYERS, CHUNK, CACHE, HISTORIES = 2, 4, 15, (4, 8)
HIDDEN = -65536.0


def save(
    path: Path, text: str, weights: Mapping[str, Array] | None = None, groups: object = None
) -> Path:
    """Write a graph in ONNX's text, with `weights` as further constants."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    named = (onnx.numpy_helper.from_array(w, name) for name, w in (weights or {}).items())
    model.graph.initializer.extend(named)
    if groups is not None:
        helper.set_model_props(model, {"axcore.shape_groups": json.dumps(groups)})
    onnx.save(model, path)
    return path


@dataclass(frozen=True)
class ToyLanguageModel:
    """Layers of one attention head over the position plus the state, and a head over `WIDTH`.

    Attributes:
        folder: Where the files lie: ``toy_p4_l<i>_together.onnx`` and ``toy_post.onnx``.
        weights: bfloat16 matrices of each layer, by name.
        head: bfloat16 ``[WIDTH, VOCABULARY]``.
        embedding: float32 ``[VOCABULARY, WIDTH]``, values of bfloat16.
        groups: The shape groups of every layer.
    """

    folder: Path
    weights: Sequence[Mapping[str, Array]]
    head: Array
    embedding: Array
    groups: Sequence[Mapping[str, Any]]

    def logits(self, ids: Sequence[int]) -> Array:
        """Return float32 ``[VOCABULARY]`` behind the last of `ids`: all at once, no cache.

        Written in numpy from the definition of attention; states and cache rows are rounded to
        bfloat16 where the layers hand them over.
        """
        count = len(ids)
        state = self.embedding[list(ids)]
        for weights in self.weights:
            q, k, v = (state @ weights[name].astype(np.float32) for name in ("q", "k", "v"))
            k, v = rounded(k + np.arange(count, dtype=np.float32)[:, None] / 8), rounded(v)
            scores = np.where(np.tri(count, dtype=bool), q @ k.T, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            state = rounded(state + shares @ v @ weights["o"].astype(np.float32))
        result: Array = rounded(state[-1] @ self.head.astype(np.float32))
        return result


def rounded(array: Array) -> Array:
    """Return float32 rounded to what bfloat16 holds."""
    return array.astype(bfloat16).astype(np.float32)


def shape_group(history: int, count: int, *, placeholder: bool = False) -> dict[str, Any]:
    """Return the shapes of `count` tokens behind `history` cached ones."""
    caches = [1, history, CACHE_WIDTH]
    made = [1, count, CACHE_WIDTH]
    state = [1, count, WIDTH]
    inputs = {"K_cache": caches, "V_cache": caches, "indices": [1, count], "input": state}
    inputs["mask"] = [1, count, history + count]
    group = {"outputs": {"K_cache_out": made, "V_cache_out": made, "output": state}}
    if placeholder:
        group["empty"] = {"K_cache": caches, "V_cache": caches}
        inputs |= {"K_cache": [1, 1, WIDTH], "V_cache": [1, 1, WIDTH]}
    return {"inputs": inputs, **group}


# Type 1 is float32, type 16 bfloat16.
LAYER = f"""layer (
  bfloat16[1,h,{CACHE_WIDTH}] K_cache, bfloat16[1,h,{CACHE_WIDTH}] V_cache, uint32[1,n] indices,
  bfloat16[1,n,{WIDTH}] input, bfloat16[1,n,m] mask
) => (
  bfloat16[1,n,{CACHE_WIDTH}] K_cache_out, bfloat16[1,n,{CACHE_WIDTH}] V_cache_out,
  bfloat16[1,n,{WIDTH}] output
) <int64[1] last = {{2}}, float eight = {{8}}> {{
  x = Cast <to = 1> (input)
  wq = Cast <to = 1> (q)  query = MatMul (x, wq)
  wk = Cast <to = 1> (k)  plain_key = MatMul (x, wk)
  wv = Cast <to = 1> (v)  value = MatMul (x, wv)
  index = Cast <to = 1> (indices)  column = Unsqueeze (index, last)  position = Div (column, eight)
  key = Add (plain_key, position)
  K_cache_out = Cast <to = 16> (key)  new_keys = Cast <to = 1> (K_cache_out)
  V_cache_out = Cast <to = 16> (value)  new_values = Cast <to = 1> (V_cache_out)
  old_keys = Cast <to = 1> (K_cache)  keys = Concat <axis = 1> (old_keys, new_keys)
  old_values = Cast <to = 1> (V_cache)  values = Concat <axis = 1> (old_values, new_values)
  turned = Transpose <perm = [0, 2, 1]> (keys)  scores = MatMul (query, turned)
  hidden = Cast <to = 1> (mask)  masked = Add (scores, hidden)
  shares = Softmax <axis = -1> (masked)  mixed = MatMul (shares, values)
  wo = Cast <to = 1> (o)  projected = MatMul (mixed, wo)
  sum = Add (x, projected)  output = Cast <to = 16> (sum)
}}"""
HEAD = f"""head (bfloat16[1,1,{WIDTH}] input) => (bfloat16[1,1,{VOCABULARY}] output) {{
  x = Cast <to = 1> (input)  w = Cast <to = 1> (head)  y = MatMul (x, w)
  output = Cast <to = 16> (y)
}}"""


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyLanguageModel:
    """A language model of two layers with one decode and three prefill groups, random weights."""
    folder = tmp_path_factory.mktemp("toy")
    random = np.random.default_rng(7)
    groups = [shape_group(CACHE, 1), shape_group(0, CHUNK, placeholder=True)]
    groups += [shape_group(history, CHUNK) for history in HISTORIES]
    shapes = dict.fromkeys("qkv", (WIDTH, CACHE_WIDTH)) | {"o": (CACHE_WIDTH, WIDTH)}
    layers = []
    for index in range(LAYERS):
        weights = {n: random.standard_normal(s).astype(bfloat16) for n, s in shapes.items()}
        save(folder / f"toy_p{CHUNK}_l{index}_together.onnx", LAYER, weights, groups)
        layers.append(weights)
    head = random.standard_normal((WIDTH, VOCABULARY)).astype(bfloat16)
    save(folder / "toy_post.onnx", HEAD, {"head": head})
    embedding = rounded(random.standard_normal((VOCABULARY, WIDTH)).astype(np.float32))
    return ToyLanguageModel(folder, layers, head, embedding, groups)


@pytest.fixture(scope="session")
def toy_deployment(
    toy: ToyLanguageModel, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    """`toy` in a folder with its embedding and a tokenizer; nothing ends its answers."""
    folder = tmp_path_factory.mktemp("toy") / "deployment"
    shutil.copytree(toy.folder, folder)
    toy.embedding.astype(bfloat16).tofile(folder / EMBEDDING_FILE)
    shutil.copyfile(finished / "tokenizer.json", folder / "tokenizer.json")
    opened = Deployment.open(finished, Registry())
    manifest = replace(opened.bundle.manifest, checkpoint=CheckpointRecord(""), files={})
    return replace(
        opened,
        bundle=Bundle(folder, manifest),
        llm=LlmBuildArgs(CHUNK, CACHE, HISTORIES),
        layers=LAYERS,
        embedding=Embedding("embed", (VOCABULARY, WIDTH)),
        stop_ids=frozenset(),
    )


@pytest.fixture(scope="session")
def same(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a model that returns its input ``x`` as ``y``, of a type in ONNX's text."""
    folder = tmp_path_factory.mktemp("same")

    def write(kind: str = "float[2,3]", groups: object = None, name: str = "same.onnx") -> Path:
        text = f"same ({kind} x) => ({kind} y) {{ y = Identity (x) }}"
        return save(folder / name, text, groups=groups)

    return write
