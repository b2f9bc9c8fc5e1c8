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
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper

from axcore import Embedding, LlmBuildArgs, Registry
from axcore.bundle import Bundle
from axcore.runtime.deployment import EMBEDDING_FILE, Deployment

Array = np.ndarray[Any, Any]
Values = Mapping[str, tuple[int, Sequence[int | str]]]
BF16 = TensorProto.BFLOAT16

WIDTH, CACHE_WIDTH, VOCABULARY = 8, 4, 32
LAYERS, CHUNK, CACHE, HISTORIES = 2, 4, 15, (4, 8)
HIDDEN = -65536.0


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    weights: Mapping[str, Array] | None = None,
    groups: object = None,
) -> Path:
    """Write a graph; `inputs` and `outputs` map names to ONNX dtype and shape."""
    ports = [
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    initializers = [onnx.numpy_helper.from_array(w, name) for name, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, path.stem, *ports, initializers)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
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


def save_layer(path: Path, weights: Mapping[str, Array], groups: object) -> None:
    node = helper.make_node
    names = ("K_cache", "V_cache", "indices", "input", "mask")
    floats = [node("Cast", [name], [f"{name}.f"], to=TensorProto.FLOAT) for name in names]
    matrices = [node("Cast", [name], [f"{name}.f"], to=TensorProto.FLOAT) for name in weights]
    made = ("K_cache_out", "V_cache_out", "output")
    nodes = [
        *floats,
        *matrices,
        node("MatMul", ["input.f", "q.f"], ["query"]),
        node("MatMul", ["input.f", "k.f"], ["plain_key"]),
        node("Unsqueeze", ["indices.f", "last"], ["column"]),
        node("Div", ["column", "eight"], ["position"]),
        node("Add", ["plain_key", "position"], ["key"]),
        node("MatMul", ["input.f", "v.f"], ["value"]),
        node("Cast", ["key"], ["K_cache_out"], to=BF16),
        node("Cast", ["value"], ["V_cache_out"], to=BF16),
        node("Cast", ["K_cache_out"], ["new_key"], to=TensorProto.FLOAT),
        node("Cast", ["V_cache_out"], ["new_value"], to=TensorProto.FLOAT),
        node("Concat", ["K_cache.f", "new_key"], ["keys"], axis=1),
        node("Concat", ["V_cache.f", "new_value"], ["values"], axis=1),
        node("Transpose", ["keys"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["query", "turned"], ["scores"]),
        node("Add", ["scores", "mask.f"], ["masked"]),
        node("Softmax", ["masked"], ["shares"], axis=-1),
        node("MatMul", ["shares", "values"], ["mixed"]),
        node("MatMul", ["mixed", "o.f"], ["projected"]),
        node("Add", ["input.f", "projected"], ["sum"]),
        node("Cast", ["sum"], ["output"], to=BF16),
    ]
    inputs: Values = {
        "K_cache": (BF16, [1, "h", CACHE_WIDTH]),
        "V_cache": (BF16, [1, "h", CACHE_WIDTH]),
        "indices": (TensorProto.UINT32, [1, "n"]),
        "input": (BF16, [1, "n", WIDTH]),
        "mask": (BF16, [1, "n", "h+n"]),
    }
    widths = (CACHE_WIDTH, CACHE_WIDTH, WIDTH)
    outputs = {name: (BF16, [1, "n", width]) for name, width in zip(made, widths, strict=True)}
    constants = {"last": np.array([2]), "eight": np.array(8, np.float32)}
    save(path, nodes, inputs, outputs, {**weights, **constants}, groups)


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
        save_layer(folder / f"toy_p{CHUNK}_l{index}_together.onnx", weights, groups)
        layers.append(weights)
    head = random.standard_normal((WIDTH, VOCABULARY)).astype(bfloat16)
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["head"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Cast", ["y"], ["output"], to=BF16),
    ]
    ports = ({"input": (BF16, [1, 1, WIDTH])}, {"output": (BF16, [1, 1, VOCABULARY])})
    save(folder / "toy_post.onnx", nodes, *ports, {"head": head})
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
    return replace(
        Deployment.open(finished, Registry()),
        bundle=Bundle(folder, {"checkpoint": {}, "files": {}}),
        llm=LlmBuildArgs(CHUNK, CACHE, HISTORIES),
        layers=LAYERS,
        embedding=Embedding("embed", (VOCABULARY, WIDTH)),
        stop_ids=frozenset(),
    )


@pytest.fixture(scope="session")
def same(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a model that returns its input ``x`` as ``y``."""
    folder = tmp_path_factory.mktemp("same")

    def write(
        dtype: int = TensorProto.FLOAT,
        shape: Sequence[int | str] = (2, 3),
        groups: object = None,
        name: str = "same.onnx",
    ) -> Path:
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        return save(
            folder / name, nodes, {"x": (dtype, shape)}, {"y": (dtype, shape)}, None, groups
        )

    return write


@pytest.fixture(scope="session")
def save_graph() -> Callable[..., Path]:
    """`save`: writes a graph of given nodes, inputs, outputs and weights."""
    return save
