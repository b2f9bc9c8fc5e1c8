"""One traced, optimised graph per kind of stage, with weights as graph inputs."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import torch

from ..errors import ContractError
from . import cache
from .identity import identity
from .kept import ORDERS, checked, orders_of
from .passes import WEIGHT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

    from ..component import Shape, Stage
    from .kept import Interface

Spec = tuple["Shape", torch.dtype]
"""Shape and dtype of a tensor passed between stages."""


@dataclass(frozen=True)
class KindGraph:
    """The graph that all stages of a kind share.

    Attributes:
        model: Inputs ``state.<i>`` and ``weight.<parameter>``, unused ones left out; outputs
            ``out.<i>``.
        outputs: Shape and dtype of each output.
        orders: Parameter to the permutation of axes in which the graph expects it; only those that
            are permuted.
    """

    model: ir.Model
    outputs: tuple[Spec, ...]
    orders: Mapping[str, tuple[int, ...]]


def typed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of `module` for inference, its parameters and float buffers in `dtype`."""
    return copy.deepcopy(module).to(dtype).eval()


def trace(
    stage: Stage,
    state: Sequence[Spec],
    dtype: torch.dtype,
    opset: int,
    dynamic: Sequence[Collection[int]] = (),
) -> KindGraph:
    """Trace a stage into the smallest graph that the operator set `opset` can express.

    No weight is in memory: parameters are inputs of the graph, so no optimiser sees their values
    and the cost does not depend on their size. What was traced before is taken from the user's
    cache, see `axcore.graph.cache`; it has the same bytes.

    Args:
        stage: Parameters on the meta device, buffers real.
        state: Shape and dtype of what the stage receives.
        dtype: Precision of parameters and float buffers.
        opset: 16 to 20.
        dynamic: For each tensor of `state` the axes whose length may change from call to call, all
            of them at least 2 in `state`; weights then stay in their own order of axes, and the
            result's `outputs` are unknown.

    Raises:
        ContractError: The module cannot be traced, or the graph cannot be expressed in `opset`.
    """
    if hidden := [name for name, buffer in stage.module.named_buffers() if buffer.is_meta]:
        raise ContractError(
            f"stage `{stage.name}` has buffers on the meta device: {', '.join(hidden)}",
            hint="build constants on the CPU; only parameters belong on the meta device",
        )
    facts = state, dtype, opset, [sorted(axes) for axes in dynamic], torch.get_default_dtype()
    key = identity(stage.module, facts)
    content = key and cache.read(key)
    if key and content:
        with suppress(ValueError, ContractError):
            interface = _interface(stage, state, dtype, dynamic)
            return _kind(checked(content, interface, opset), stage, bool(dynamic))
        cache.remove(key)
    content = _traced(stage, state, dtype, opset, dynamic)
    if key:
        cache.write(key, content)
    return _kind(onnx.ModelProto.FromString(content), stage, bool(dynamic))


def _traced(
    stage: Stage,
    state: Sequence[Spec],
    dtype: torch.dtype,
    opset: int,
    dynamic: Sequence[Collection[int]],
) -> bytes:
    from .exporter import export

    model, orders = export(stage, typed(stage.module, dtype), state, opset, dynamic)
    if orders:
        model.metadata_props[ORDERS] = json.dumps(orders)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _kind(proto: onnx.ModelProto, stage: Stage, dynamic: bool) -> KindGraph:
    """Return the graph, always read from bytes, so that a kept one is the same as a new one."""
    model: ir.Model = ir.from_proto(proto)
    orders = orders_of(model.metadata_props.pop(ORDERS, "{}"))
    if dynamic:  # output shapes vary
        return KindGraph(model, (), orders)
    return KindGraph(model, tuple(_spec(value, stage) for value in model.graph.outputs), orders)


def _interface(
    stage: Stage,
    state: Sequence[Spec],
    dtype: torch.dtype,
    dynamic: Sequence[Collection[int]],
) -> Interface:
    """Return what a graph of the stage may take."""
    taken: dict[str, tuple[ir.DataType, tuple[int | None, ...]]] = {}
    for index, (shape, kind) in enumerate(state):
        free = dynamic[index] if dynamic else ()
        lengths = (None if axis in free else length for axis, length in enumerate(shape))
        taken[f"state.{index}"] = _dtype(kind), tuple(lengths)
    for name, parameter in stage.module.named_parameters():
        kind = dtype if parameter.is_floating_point() else parameter.dtype
        taken[WEIGHT + name] = _dtype(kind), tuple(parameter.shape)
    return taken


def _dtype(kind: torch.dtype) -> ir.DataType:
    return ir.tensor_adapters.from_torch_dtype(kind)


def _spec(value: ir.Value, stage: Stage) -> Spec:
    shape, dtype = value.shape, value.dtype
    if shape is None or dtype is None or not shape.is_static():
        raise ContractError(
            f"output `{value.name}` of stage `{stage.name}` has no static shape: {shape}",
            hint="every shape must follow from the input shapes",
        )
    return tuple(shape.numpy()), ir.tensor_adapters.to_torch_dtype(dtype)
