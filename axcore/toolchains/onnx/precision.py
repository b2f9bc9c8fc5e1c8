"""How a layer model stores weights and passes states; it computes in float32 throughout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from ...checkpoint.quantised import float_tensor
from ...files import write_at

if TYPE_CHECKING:
    from torch import Tensor

    from ...checkpoint import Checkpoint
    from ...component import Shape, Weight

STATES: Mapping[str, ir.DataType] = {"bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}
_TORCH = {ir.DataType.BFLOAT16: torch.bfloat16, ir.DataType.FLOAT: torch.float32}


@dataclass(frozen=True)
class Precision:
    """Precision of states and caches ("bf16", "fp32"), and of stored weights (and "s8")."""

    states: str
    weights: str


@dataclass(frozen=True)
class Stored:
    """One initializer in a data file; `write` puts its bytes at an offset of an open file."""

    name: str
    dtype: ir.DataType
    shape: Shape
    write: Callable[[int, int], None]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


def stored_forms(
    name: str, shape: Shape, weight: Weight, checkpoint: Checkpoint, precision: str
) -> list[Stored]:
    """Return what stands for a parameter in a data file.

    Args:
        name: Of the parameter.
        shape: Its shape.
        weight: Where it comes from.
        checkpoint: Read while the file is written.
        precision: "bf16", "fp32" or "s8"; vectors are never stored in 8 bits.
    """
    read = partial(weight.resolve, partial(float_tensor, checkpoint))
    if precision == "s8" and len(shape) == 2:
        channels = _Channels(read)
        return [
            Stored(f"{name}.s8", ir.DataType.INT8, shape, partial(_write, channels.weight)),
            Stored(f"{name}.scale", ir.DataType.FLOAT, shape[:1], partial(_write, channels.scale)),
        ]
    dtype = ir.DataType.FLOAT if precision == "fp32" else ir.DataType.BFLOAT16
    if dtype is ir.DataType.BFLOAT16 and (key := _as_it_lies(weight, checkpoint)):
        return [Stored(name, dtype, shape, partial(checkpoint.copy, key))]
    return [Stored(name, dtype, shape, partial(_write, lambda: read().to(_TORCH[dtype])))]


def add_weight(graph: ir.Graph, value: ir.Value, stored: list[ir.Value]) -> None:
    """Put initializers, and what makes float32 of them, in place of a weight's input.

    Runtimes fold that into float32 once, when they load the file.

    Args:
        graph: Where they go.
        value: The float32 input that stands for the weight; loses its uses.
        stored: Initializers of `stored_forms`.
    """
    for initializer in stored:
        graph.register_initializer(initializer)
    if stored[0].dtype is ir.DataType.FLOAT:
        ir.convenience.replace_all_uses_with(value, stored[0])
        return
    name = f"{value.name}.f32"
    if len(stored) == 2:
        node = ir.node("DequantizeLinear", stored, {"axis": 0}, name=name)
    else:
        node = cast(stored[0], ir.DataType.FLOAT, name)
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])


def _as_it_lies(weight: Weight, checkpoint: Checkpoint) -> str:
    """Return the key of the tensor that is the weight, bit by bit; empty where none is."""
    key = weight.source
    plain = isinstance(key, str) and not weight.steps and key in checkpoint.tensors
    return str(key) if plain and checkpoint.info(str(key)).dtype == "bfloat16" else ""


def _write(read: Callable[[], Tensor], descriptor: int, offset: int) -> None:
    data = read().contiguous().reshape(-1).view(torch.uint8).numpy().data
    write_at(descriptor, data, offset)


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
