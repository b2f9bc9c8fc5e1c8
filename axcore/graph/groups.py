"""Cut an exported graph into groups of stages that run one behind the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
import onnx.helper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


def groups(
    model: onnx.ModelProto, boundaries: Collection[str], most_bytes: int
) -> Iterator[onnx.ModelProto]:
    """Yield models that together compute what `model` does, in the order to run them.

    Args:
        model: Its weights may lie in another file, and stay there.
        boundaries: Values behind which it may be cut; each is an output of its group, besides what
            later groups and the model's callers need.
        most_bytes: Weights of a group; one between two boundaries that has more is one group.
    """
    graph, ends = model.graph, set(boundaries)
    sizes = {tensor.name: _nbytes(tensor) for tensor in graph.initializer}
    nodes, held = list[onnx.NodeProto](), 0
    runs: list[list[onnx.NodeProto]] = []
    between: list[onnx.NodeProto] = []
    for node in graph.node:
        between.append(node)
        if ends.isdisjoint(node.output):
            continue
        size = sum(sizes.get(name, 0) for name in {n for one in between for n in _taken(one)})
        if nodes and held + size > most_bytes:
            runs.append(nodes)
            nodes, held = [], 0
        nodes, held, between = nodes + between, held + size, []
    runs.append(nodes + between)
    return _models(model, [run for run in runs if run], boundaries)


def _models(
    model: onnx.ModelProto, runs: Sequence[Sequence[onnx.NodeProto]], boundaries: Collection[str]
) -> Iterator[onnx.ModelProto]:
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    infos = {one.name: one for one in (*graph.input, *graph.value_info, *graph.output)}
    returned = [value.name for value in graph.output]
    for index, run in enumerate(runs):
        taken = list(dict.fromkeys(name for node in run for name in _taken(node)))
        made = [name for node in run for name in node.output if name]
        later = {name for other in runs[index + 1 :] for node in other for name in _taken(node)}
        given = later | {*boundaries, *returned}
        part = onnx.helper.make_graph(
            run,
            graph.name,
            [infos[name] for name in taken if name not in tensors and name not in made],
            [infos[name] for name in made if name in given],
            [tensors[name] for name in taken if name in tensors],
        )
        yield onnx.helper.make_model(
            part, opset_imports=model.opset_import, ir_version=model.ir_version
        )


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the values that a node needs, those of graphs within it among them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            made = {value.name for value in (*inner.input, *inner.initializer)}
            for one in inner.node:
                yield from (name for name in _taken(one) if name not in made)
                made |= set(one.output)


def _nbytes(tensor: onnx.TensorProto) -> int:
    width: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims)) * width
