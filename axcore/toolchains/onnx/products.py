"""Products with matrices of integers, which stay integers in memory.

ONNX Runtime multiplies 8-bit codes of states and weights exactly, in 32 bits. Eight bits are too few
for states, so that each row becomes two: x = step * (high + low / 254), both whole numbers of -127 to
127, with a step per row. They are multiplied one below the other, so weights are read once for both.

A state is thus off by max |x| / 64516 of its row at most. Rounding to bfloat16 moves the largest
value of a row by up to max |x| / 512, all others in proportion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEPS = 127  # of a row's largest magnitude, to one side
_LOW_STEPS = 2 * _STEPS  # of half a step, which is what remains
_TINY = np.float32(1e-30)  # instead of a step of 0; a 254th of it is still a normal number
_ZERO = 128  # the code of 0 among unsigned ones
_CONTRIB = "com.microsoft"


def multiply_integers(graph: ir.Graph) -> None:
    """Let every `Gemm` by dequantised codes multiply the codes themselves.

    Args:
        graph: Changed in place. Matrices ``[in, out]`` are int8 initializers that pass through
            `DequantizeLinear` with a scale per column; other nodes stay as they are.
    """
    products = [(node, source) for node in graph if (source := _codes(node)) is not None]
    states: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node, source in products:
        given = node.inputs[0]
        assert given is not None
        if given not in states:
            states[given] = _halves(graph, node, given)
        _replace(graph, node, source, *states[given])
    for source in {source for _, source in products}:
        if not source.outputs[0].uses():
            graph.remove(source, safe=True)
    if products:
        graph.opset_imports[_CONTRIB] = 1


def _codes(node: ir.Node) -> ir.Node | None:
    """Return what dequantises the codes that a node multiplies by."""
    if node.op_type != "Gemm" or any(node.attributes.get_int(n, 0) for n in ("transA", "transB")):
        return None
    matrix = node.inputs[1]
    source = matrix.producer() if matrix is not None else None
    if source is None or source.op_type != "DequantizeLinear" or len(source.inputs) != 2:
        return None
    codes = source.inputs[0]
    found = codes is not None and codes.is_initializer() and codes.dtype is ir.DataType.INT8
    return source if found and source.attributes.get_int("axis", 1) == 1 else None


def _halves(graph: ir.Graph, before: ir.Node, state: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Add nodes that split a state ``[n, in]``.

    Returns:
        uint8 ``[2 n, in]``: the high halves of all rows, then the low ones; float32 ``[n, 1]``: the
        step of each row.
    """
    made = _Nodes(graph, before, f"{state.name}.")
    last = made.constant("last_axis", np.array([1]))
    largest = made.add("ReduceMax", [made.add("Abs", [state]), last], keepdims=0)
    steps = made.add("Mul", [largest, made.constant("step", np.float32(1 / _STEPS))])
    steps = made.add("Max", [steps, made.constant("least_step", _TINY)])
    low_steps = made.add("Mul", [steps, made.constant("low_step", np.float32(1 / _LOW_STEPS))])
    zero = made.constant("zero", np.uint8(_ZERO))
    zeros = made.add("Expand", [zero, made.add("Shape", [steps])])
    high = made.add("QuantizeLinear", [state, steps, zeros], axis=0)
    rest = made.add("Sub", [state, made.add("DequantizeLinear", [high, steps, zeros], axis=0)])
    low = made.add("QuantizeLinear", [rest, low_steps, zeros], axis=0)
    return made.add("Concat", [high, low], axis=0), made.add("Unsqueeze", [steps, last])


def _replace(
    graph: ir.Graph, node: ir.Node, source: ir.Node, halves: ir.Value, steps: ir.Value
) -> None:
    """Put the product of codes in place of a `Gemm`."""
    old = node.outputs[0]
    made = _Nodes(graph, node, f"{old.name}.")
    unit = made.constant("unit", np.float32(1))
    zero = made.constant("zero", np.uint8(_ZERO))
    # The zero point is needed where ONNX Runtime shifts codes to unsigned ones.
    none = made.constant("weight_zero", np.int8(0))
    codes, scales = source.inputs
    inputs = [halves, codes, unit, scales, zero, none]
    both = made.add("MatMulIntegerToFloat", inputs, domain=_CONTRIB)
    high, low = made.split(both)
    low = made.add("Mul", [low, made.constant("low_step", np.float32(1 / _LOW_STEPS))])
    new = made.add("Mul", [made.add("Add", [high, low]), steps])
    if len(node.inputs) > 2:
        new = made.add("Add", [new, node.inputs[2]])
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name, new.shape = name, old.shape


class _Nodes:
    """Adds float32 nodes before a node of a graph, and constants that the graph shares."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self._graph, self._before, self._prefix = graph, before, prefix
        self._count = 0

    def add(
        self, kind: str, inputs: Sequence[ir.Value | None], domain: str = "", **given: int
    ) -> ir.Value:
        node = self._insert(kind, inputs, domain, 1, given)
        return node.outputs[0]

    def split(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the upper and the lower half of the rows."""
        node = self._insert("Split", [value], "", 2, {"axis": 0, "num_outputs": 2})
        first, second = node.outputs
        return first, second

    def constant(self, name: str, value: np.ndarray | np.generic) -> ir.Value:
        name = f"integer_product.{name}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.asarray(value), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]

    def _insert(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        domain: str,
        outputs: int,
        given: dict[str, int],
    ) -> ir.Node:
        self._count += 1
        name = f"{self._prefix}{kind}_{self._count}"
        node = ir.node(kind, inputs, given, domain=domain, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}.{index}"
            value.type = ir.TensorType(_result(kind, inputs))
        self._graph.insert_before(self._before, node)
        return node


def _result(kind: str, inputs: Sequence[ir.Value | None]) -> ir.DataType:
    """Return the dtype of what a node of `_Nodes` makes."""
    if kind == "Shape":
        return ir.DataType.INT64
    kept = kind in ("Expand", "Concat") and inputs[0] is not None
    return ir.DataType.UINT8 if kept or kind == "QuantizeLinear" else ir.DataType.FLOAT
