"""Look at a graph from the cache before it is used: nothing in such a file is trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.checker
import onnx_ir as ir

from ..foreign import decode_json
from ..plain import parse
from .passes import WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Interface = Mapping[str, tuple[ir.DataType, tuple[int | None, ...]]]
    """Name of an input to its type and shape; None for a length that may be any."""

ORDERS = "axcore.orders"
"""Property of a graph: parameter to the permutation of its axes, as JSON."""


def checked(content: bytes, interface: Interface, opset: int) -> onnx.ModelProto:
    """Return the graph in `content`.

    Args:
        content: What was kept.
        interface: What the graph may take.
        opset: The operator set that it is in.

    Raises:
        ValueError: It is no ONNX graph, takes something else, needs another file or other
            operators, or an output is not where it should be.
    """
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(content)
        if any(one.data_location == onnx.TensorProto.EXTERNAL for one in _tensors(proto.graph)):
            raise ValueError("its data are in another file")
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # protobuf and onnx share no base class for damaged graphs
        raise ValueError(str(error)) from error
    if [(one.domain, one.version) for one in proto.opset_import] != [("", opset)]:
        raise ValueError("it is in other operator sets")
    if proto.functions or proto.training_info:
        raise ValueError("it has parts that are not executed")
    names = [value.name for value in proto.graph.output]
    if names != [f"out.{index}" for index in range(len(names))]:
        raise ValueError("its outputs are named otherwise")
    orders = orders_of({one.key: one.value for one in proto.metadata_props}.get(ORDERS, "{}"))
    graph = ir.from_proto(proto).graph
    for value in graph.inputs:
        _check_input(value, interface, orders)
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value.numpy()  # fails where it has less data than its shape says
    return proto


def orders_of(text: str) -> dict[str, tuple[int, ...]]:
    """Return the permutations that a graph's property says; raises ValueError."""
    orders = parse(dict[str, tuple[int, ...]], decode_json(text))
    if any(sorted(order) != list(range(len(order))) for order in orders.values()):
        raise ValueError("it permutes axes that there are not")
    return orders


def _check_input(
    value: ir.Value, interface: Interface, orders: Mapping[str, tuple[int, ...]]
) -> None:
    name = str(value.name)
    dtype, shape = interface.get(name, (None, ()))
    order = orders.get(name.removeprefix(WEIGHT)) if name.startswith(WEIGHT) else None
    if order is not None:
        shape = tuple(shape[axis] for axis in order) if len(order) == len(shape) else ()
    lengths = tuple(value.shape or ())
    if dtype != value.dtype or len(lengths) != len(shape):
        raise ValueError(f"it takes {value}")
    if any(wanted not in (None, length) for length, wanted in zip(lengths, shape, strict=True)):
        raise ValueError(f"it takes {value}")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors in a graph and the graphs in it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for one in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (one.values, one.indices)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)
