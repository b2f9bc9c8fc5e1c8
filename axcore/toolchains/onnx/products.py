"""Products with matrices of integers, which stay integers in memory.

ONNX Runtime multiplies 8-bit codes of states and weights exactly, in 32 bits. Eight bits are too
few for states, so that each row becomes two: x = step * (high + low / 2m), whole numbers of -m to
m, with a step per row. They are multiplied one below the other, so weights are read once for both.

m is 127, and a state is off by max |x| / 64516 of its row at most; rounding to bfloat16 moves the
largest value of a row by up to max |x| / 512, others in proportion. On x86 processors that cannot
add products in 32 bits (before VNNI), pairs of products saturate at 16 bits: there m is 63, with
which none can, and a state is off by max |x| / 15876. The graph finds out when it is loaded: a
product whose sum is known is folded to a constant like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STEPS, _SAFE_STEPS = 127, 63  # m above: of a row's largest magnitude, to one side
_TINY = np.float32(1e-30)  # instead of a step of 0; a 254th of it is still a normal number
_CONTRIB = "com.microsoft"


def multiply_integers(graph: ir.Graph) -> None:
    """Let every `Gemm` by dequantised codes multiply the codes themselves.

    Args:
        graph: Changed in place. Matrices ``[in, out]`` are int8 initializers that pass through
            `DequantizeLinear` with a scale per column; other nodes stay as they are.
    """
    products = [(node, source) for node in graph if (source := _codes(node)) is not None]
    if not products:
        return
    graph.opset_imports[_CONTRIB] = 1
    shared = _Shared(_Nodes(graph, graph[0], "integer_product."))
    states: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node, source in products:
        state = node.inputs[0]
        assert state is not None
        if state not in states:
            states[state] = _halves(_Nodes(graph, node, f"{state.name}."), state, shared)
        old = node.outputs[0]
        new = _product(_Nodes(graph, node, f"{old.name}."), node, source, *states[state], shared)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name, new.shape = old.name, old.shape
    for source in dict.fromkeys(source for _, source in products):
        if not source.outputs[0].uses():
            graph.remove(source, safe=True)


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


class _Shared:
    """What all products of a graph share; of 1 / m, 1 / 2m and m + 1, what suits the processor."""

    def __init__(self, made: _Nodes) -> None:
        self.unit = made.constant("unit", np.float32(1))
        self.last = made.constant("last_axis", np.array([1]))
        self.least = made.constant("least_step", _TINY)
        # Given although it is 0: ONNX Runtime can be told to shift codes to unsigned ones.
        self.weight_zero = made.constant("weight_zero", np.int8(0))
        zero = made.constant("known.zero", np.uint8(_STEPS + 1))
        states = made.constant("known.states", np.full(4, 2 * _STEPS + 1, np.uint8))
        codes = made.constant("known.codes", np.full((4, 1), _STEPS, np.int8))
        total = made.constant("known.sum", np.int32(4 * _STEPS * _STEPS))
        found = made.add("MatMulInteger", [states, codes, zero], ir.DataType.INT32)
        exact = made.add("Equal", [found, total], ir.DataType.BOOL)

        def chosen(name: str, of: Callable[[int], np.generic], dtype: ir.DataType) -> ir.Value:
            both = (made.constant(f"{name}.{m}", of(m)) for m in (_STEPS, _SAFE_STEPS))
            return made.add("Where", [exact, *both], dtype)

        self.high = chosen("high", lambda m: np.float32(1 / m), ir.DataType.FLOAT)
        self.low = chosen("low", lambda m: np.float32(0.5 / m), ir.DataType.FLOAT)
        self.zero = chosen("zero", lambda m: np.uint8(m + 1), ir.DataType.UINT8)


def _halves(made: _Nodes, state: ir.Value, shared: _Shared) -> tuple[ir.Value, ir.Value]:
    """Split a state ``[n, in]``.

    Returns:
        uint8 ``[2 n, in]``: the high halves of all rows, then the low ones; float32 ``[n, 1]``: the
        step of each row.
    """
    codes = ir.DataType.UINT8
    largest = made.add("ReduceMax", [made.add("Abs", [state]), shared.last], keepdims=0)
    steps = made.add("Max", [made.add("Mul", [largest, shared.high]), shared.least])
    low_steps = made.add("Mul", [steps, shared.low])
    count = made.add("Shape", [steps], ir.DataType.INT64)
    zeros = made.add("Expand", [shared.zero, count], codes)
    high = made.add("QuantizeLinear", [state, steps, zeros], codes, axis=0)
    rest = made.add("Sub", [state, made.add("DequantizeLinear", [high, steps, zeros], axis=0)])
    low = made.add("QuantizeLinear", [rest, low_steps, zeros], codes, axis=0)
    both = made.add("Concat", [high, low], codes, axis=0)
    return both, made.add("Unsqueeze", [steps, shared.last])


def _product(
    made: _Nodes,
    node: ir.Node,
    source: ir.Node,
    halves: ir.Value,
    steps: ir.Value,
    shared: _Shared,
) -> ir.Value:
    """Multiply both halves by a matrix's codes and return what a `Gemm` does."""
    codes, scales = source.inputs
    inputs = [halves, codes, shared.unit, scales, shared.zero, shared.weight_zero]
    both = made.add("MatMulIntegerToFloat", inputs, domain=_CONTRIB)
    high, low = made.halves(both)
    total = made.add("Add", [high, made.add("Mul", [low, shared.low])])
    product = made.add("Mul", [total, steps])
    return made.add("Add", [product, *node.inputs[2:]]) if len(node.inputs) > 2 else product


class _Nodes:
    """Adds nodes before a node of a graph, and constants that its products share."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self._graph, self._before, self._prefix = graph, before, prefix
        self._count = 0

    def add(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
        **attributes: int,
    ) -> ir.Value:
        """Add a node with one output."""
        return self._insert(ir.node(kind, inputs, attributes, domain=domain), dtype)[0]

    def halves(self, value: ir.Value) -> Sequence[ir.Value]:
        """Return the upper and the lower half of the rows."""
        split = ir.node("Split", [value], {"axis": 0, "num_outputs": 2}, num_outputs=2)
        return self._insert(split, ir.DataType.FLOAT)

    def constant(self, name: str, value: np.ndarray[Any, Any] | np.generic) -> ir.Value:
        """Add an initializer."""
        name = f"{self._prefix}{name}"
        made = ir.val(name, const_value=ir.tensor(np.asarray(value), name=name))
        self._graph.register_initializer(made)
        return made

    def _insert(self, node: ir.Node, dtype: ir.DataType) -> Sequence[ir.Value]:
        self._count += 1
        node.name = f"{self._prefix}{node.op_type}_{self._count}"
        for index, value in enumerate(node.outputs):
            value.name, value.type = f"{node.name}.{index}", ir.TensorType(dtype)
        self._graph.insert_before(self._before, node)
        return node.outputs
