"""How a layer model stores weights and passes states; it computes in float32 throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

STATES: Mapping[str, ir.DataType] = {"bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}
_TORCH = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """Precision of states and caches ("bf16", "fp32"), and of stored weights (and "s8")."""

    states: str
    weights: str


def add_weight(
    graph: ir.Graph, value: ir.Value, load: Callable[[], Tensor], precision: str
) -> None:
    """Put a lazily read initializer, and what makes float32 of it, in place of an input.

    Runtimes fold that into float32 once, when they load the file.

    Args:
        graph: Where it goes.
        value: The float32 input that stands for the weight; loses its uses.
        load: Reads the weight; called when the model is saved.
        precision: "bf16", "fp32" or "s8"; vectors are never stored in 8 bits.
    """
    assert value.shape is not None
    if precision == "s8" and len(value.shape) == 2:
        read = _Channels(load)
        rows = ir.Shape([value.shape[0]])
        weight = _lazy(graph, f"{value.name}.s8", ir.DataType.INT8, value.shape, read.weight)
        scale = _lazy(graph, f"{value.name}.scale", ir.DataType.FLOAT, rows, read.scale)
        node = ir.node("DequantizeLinear", [weight, scale], {"axis": 0}, name=f"{value.name}.f32")
    else:
        stored = "bf16" if precision == "s8" else precision
        dtype = _TORCH[stored]
        kind = ir.tensor_adapters.from_torch_dtype(dtype)
        weight = _lazy(graph, str(value.name), kind, value.shape, lambda: load().to(dtype))
        if stored == "fp32":
            ir.convenience.replace_all_uses_with(value, weight)
            return
        node = cast(weight, ir.DataType.FLOAT, f"{value.name}.f32")
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])


class _Channels:
    """A matrix in 8 bits with a scale per row, symmetric, as the vendor's builder stores it."""

    def __init__(self, load: Callable[[], Tensor]) -> None:
        self._load = load

    def scale(self) -> Tensor:
        """Return float32 ``[rows]``: the largest magnitude of a row is 127 steps."""
        return self._steps(self._load().float())

    def weight(self) -> Tensor:
        """Return int8 ``[rows, columns]``."""
        matrix = self._load().float()
        return torch.round(matrix / self._steps(matrix)[:, None]).to(torch.int8)

    @staticmethod
    def _steps(matrix: Tensor) -> Tensor:
        return matrix.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127


def cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    """Return a node that casts `value`; its output is called `name`."""
    node = ir.node("Cast", [value], {"to": to.value}, name=f"{name}/Cast")
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
    return node


def _lazy(
    graph: ir.Graph,
    name: str,
    kind: ir.DataType,
    shape: ir.Shape,
    load: Callable[[], Tensor],
) -> ir.Value:
    def materialise() -> ir.TensorProtocol:
        return ir.tensor_adapters.TorchTensor(load().contiguous(), name=name)

    value = ir.Value(name=name, shape=shape, type=ir.TensorType(kind))
    value.const_value = ir.LazyTensor(materialise, kind, shape, name=name)
    graph.register_initializer(value)
    return value
