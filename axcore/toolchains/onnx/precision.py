"""How a layer model stores weights and passes states; products apart, it computes in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
_TORCH = {
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.FLOAT: torch.float32,
}
_FLOATS = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "fp8_e4m3": ir.DataType.BFLOAT16,  # which holds every value of 8 bits
    "fp8_e5m2": ir.DataType.BFLOAT16,
}
_FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
_STEPS = {"s8": 128, "s4": 8}  # of the magnitude of a row, to one side

# The head of a large vocabulary would take gigabytes in float32. Blocks of 64 rows stay in a core's
# cache, and are a cache line wide once transposed.
_BLOCK_ROWS, _BLOCK_VALUES = 64, 1 << 20
_STRIP_VALUES = 1 << 25  # codes of so many weights are held at once

WEIGHTS = (*_STEPS, *_FLOATS)
RULES = ("absmax", "signed")


@dataclass(frozen=True)
class Precision:
    """How a build keeps what it computes with.

    Attributes:
        states: Of states and caches: a key of `STATES`.
        weights: Of matrices, one of `WEIGHTS`.
        rule: How a row of a matrix becomes integers, one of `RULES`: see `row_codes`.
        inside: Whether states are rounded between the operators of a layer as well.
    """

    states: str
    weights: str
    rule: str = RULES[0]
    inside: bool = False

    @property
    def head(self) -> Precision:
        """Of the output head: a board's is s8 whatever its layers are."""
        return self if self.weights == "fp32" else replace(self, weights="s8")


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
    name: str, shape: Shape, weight: Weight, checkpoint: Checkpoint, precision: Precision
) -> list[Stored]:
    """Return what stands for a parameter in a data file.

    Args:
        name: Of the parameter.
        shape: Its shape.
        weight: Where it comes from.
        checkpoint: Read while the file is written.
        precision: Of matrices. What is no matrix is small, and stays float32 where the checkpoint
            has that: a decay of recurrent layers rounded to bfloat16 goes wrong token by token.
    """
    read = partial(weight.resolve, partial(float_tensor, checkpoint))
    kind = precision.weights
    if kind in _STEPS and len(shape) == 2:
        columns = _Columns(partial(_row_blocks, weight, shape, checkpoint), shape, precision)
        return [
            Stored(f"{name}.{kind}", ir.DataType.INT8, shape[::-1], columns.write_codes),
            Stored(f"{name}.scale", ir.DataType.FLOAT, shape[:1], partial(_write, columns.scales)),
        ]
    if len(shape) == 2 and kind in _FP8:
        narrow = _FP8[kind]
        return [
            Stored(
                name,
                _FLOATS[kind],
                shape,
                partial(_write, lambda: read().to(narrow).to(torch.bfloat16)),
            )
        ]
    dtype = _FLOATS.get(kind, ir.DataType.BFLOAT16)
    if len(shape) != 2 and any(_is_float32(checkpoint, key) for key in weight.keys()):
        dtype = ir.DataType.FLOAT
    if dtype is ir.DataType.BFLOAT16 and (key := _as_it_lies(weight, checkpoint)):
        return [Stored(name, dtype, shape, partial(checkpoint.copy, key))]
    return [Stored(name, dtype, shape, partial(_write, lambda: read().to(_TORCH[dtype])))]


def add_weight(graph: ir.Graph, value: ir.Value, stored: list[ir.Value]) -> None:
    """Put initializers, and what makes float32 of them, in place of a weight's input.

    Runtimes fold that into float32 once, when they load the file; codes stay what they are where
    `multiply_integers` follows.

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
        _transpose_uses(graph, value)
        node = ir.node("DequantizeLinear", stored, {"axis": 1}, name=name)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    else:
        node = cast(stored[0], ir.DataType.FLOAT, name)
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])


def _transpose_uses(graph: ir.Graph, value: ir.Value) -> None:
    """Let what uses a matrix take its transpose, which is how codes are stored."""
    for node, index in list(value.uses()):
        if node.op_type == "Gemm" and index == 1:
            turned = 1 - node.attributes.get_int("transB", 0)
            node.attributes["transB"] = ir.AttrInt64("transB", turned)
        else:
            back = ir.node("Transpose", [value], {"perm": [1, 0]})
            back.outputs[0].type = value.type
            graph.insert_before(node, back)
            node.replace_input_with(index, back.outputs[0])


def _as_it_lies(weight: Weight, checkpoint: Checkpoint) -> str:
    """Return the key of the tensor that is the weight, bit by bit; empty where none is."""
    key = weight.source
    plain = isinstance(key, str) and not weight.steps and key in checkpoint.tensors
    return str(key) if plain and checkpoint.info(str(key)).dtype == "bfloat16" else ""


def _is_float32(checkpoint: Checkpoint, key: str) -> bool:
    return key in checkpoint.tensors and checkpoint.info(key).dtype == "float32"


def _write(read: Callable[[], Tensor], descriptor: int, offset: int) -> None:
    data = read().contiguous().reshape(-1).view(torch.uint8).numpy().data
    write_at(descriptor, data, offset)


def _row_blocks(weight: Weight, shape: Shape, checkpoint: Checkpoint) -> Iterator[Tensor]:
    """Yield a matrix in blocks of rows; use each before the next. A large one is never held whole.

    Only what has to be made of several tensors, or by steps, is made at once.
    """
    rows = max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // shape[1]))
    key = weight.source
    if not isinstance(key, str) or weight.steps or key not in checkpoint.tensors:
        yield from torch.split(weight.resolve(partial(float_tensor, checkpoint)), rows)
        return
    dtype = getattr(torch, checkpoint.info(key).dtype)
    for chunk in checkpoint.chunks(key, rows * shape[1] * dtype.itemsize):
        yield torch.frombuffer(chunk, dtype=dtype).view(-1, shape[1])


class _Columns:
    """A matrix as integers with a scale per row, transposed: ONNX multiplies by columns.

    It is read once for both: the codes are written before the scales.
    """

    def __init__(
        self, blocks: Callable[[], Iterator[Tensor]], shape: Shape, precision: Precision
    ) -> None:
        self._blocks, self._shape, self._precision = blocks, shape, precision
        self._scales: list[Tensor] = []

    def write_codes(self, descriptor: int, offset: int) -> None:
        """Write int8 ``[columns, rows]``; of s4 the values are -8 to 7."""
        rows, columns = self._shape
        room = min(rows, max(_BLOCK_ROWS, _STRIP_VALUES // columns))
        strip, start, filled = torch.empty((columns, room), dtype=torch.int8), 0, 0
        self._scales = []
        for block in self._blocks():
            codes, scales = row_codes(block.float(), self._precision.weights, self._precision.rule)
            self._scales.append(scales)
            if filled + len(scales) > room:
                self._write_strip(strip[:, :filled], start, descriptor, offset)
                start, filled = start + filled, 0
            strip[:, filled : filled + len(scales)] = codes.T
            filled += len(scales)
        self._write_strip(strip[:, :filled], start, descriptor, offset)

    def scales(self) -> Tensor:
        """Return float32 ``[rows]``."""
        return torch.cat(self._scales)

    def _write_strip(self, strip: Tensor, start: int, descriptor: int, offset: int) -> None:
        """Write the codes of some rows, from row `start` on, to their places in every column."""
        rows = self._shape[0]
        data = strip.contiguous().view(torch.uint8).numpy()
        if len(data[0]) == rows:
            write_at(descriptor, data.reshape(-1).data, offset)
            return
        for column, part in enumerate(data):
            write_at(descriptor, part.data, offset + column * rows + start)


def row_codes(matrix: Tensor, kind: str, rule: str) -> tuple[Tensor, Tensor]:
    """Return the integers and scales by which Pulsar2's builder stores a matrix.

    Both have one float32 scale per output row. With n = 128 for s8 and 8 for s4:

    - "absmax": scale = max |w| / (n - 1), code = w / scale rounded half to even;
    - "signed": scale = -w[argmax |w|] / n, so that the largest value is code -n and a scale may be
      negative; code = floor(w / scale + 0.5), clipped to n - 1.

    Args:
        matrix: Float32 ``[rows, columns]``.
        kind: "s8" or "s4".
        rule: One of `RULES`.

    Returns:
        Int8 ``[rows, columns]`` and float32 ``[rows]``.

    Source: onnxsim/onnxsim, ``docs/axera-llm-build-dtype-analysis.md``: the first reproduces
    440,401,920 codes of one build, the second all but exact ties of Llama builds.
    """
    steps, tiny = _STEPS[kind], torch.finfo(torch.float32).tiny
    if rule == "absmax":
        scales = matrix.abs().amax(1).clamp(min=tiny) / (steps - 1)
        codes = torch.round(matrix / scales[:, None])
    else:
        largest = matrix.gather(1, matrix.abs().argmax(1, keepdim=True))[:, 0]
        scales = torch.where(largest == 0, tiny, -largest) / steps
        codes = torch.floor(matrix / scales[:, None] + 0.5)
    return codes.clamp(-steps, steps - 1).to(torch.int8), scales


def round_inside(graph: ir.Graph, to: ir.DataType) -> None:
    """Round what matrices, softmaxes and residual sums return, as if states were kept in `to`.

    A board keeps the states between its fused operators in the type of the borders; where exactly
    is not published, so this is near a board and not equal to it.
    """
    for node in list(graph):
        if node.op_type not in _ROUNDED or node.outputs[0].dtype is not ir.DataType.FLOAT:
            continue
        value = node.outputs[0]
        uses = list(value.uses())
        narrow = cast(value, to, f"{value.name}.rounded")
        wide = cast(narrow.outputs[0], ir.DataType.FLOAT, f"{value.name}.wide")
        graph.insert_after(node, [narrow, wide])
        for user, index in uses:
            user.replace_input_with(index, wide.outputs[0])
        if value in graph.outputs:
            graph.outputs[list(graph.outputs).index(value)] = wide.outputs[0]


_ROUNDED = ("MatMul", "FusedMatMul", "Gemm", "Softmax", "Add")


def cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    """Return a node that casts `value`; its output is called `name`."""
    node = ir.node("Cast", [value], {"to": to.value}, name=f"{name}/Cast")
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
    return node
