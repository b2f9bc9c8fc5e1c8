"""One traced, optimised graph per kind of stage, with weights as graph inputs."""

from __future__ import annotations

import copy
import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
import onnx.checker
import onnx.version_converter
import onnx_ir as ir
import onnxslim
import torch
from torch import nn

from ..errors import ContractError
from ..request import OPSETS
from .older import Older
from .passes import WEIGHT, NewerAttributesPass, SplitToSlicesPass, rewrite

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ..component import Shape, Stage

Spec = tuple["Shape", torch.dtype]
"""Shape and dtype of a tensor passed between stages."""

_Signature: TypeAlias = "dict[str, tuple[int, tuple[int, ...]]]"
_EXPORTER_OPSET = 18  # native to torch's exporter; graphs are converted to older ones


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
    and the cost does not depend on their size.

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
    module = typed(stage.module, dtype)
    names = [name for name, _ in module.named_parameters()]
    if hidden := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise ContractError(
            f"stage `{stage.name}` has buffers on the meta device: {', '.join(hidden)}",
            hint="build constants on the CPU; only parameters belong on the meta device",
        )
    examples = tuple(torch.empty(shape, dtype=kind) for shape, kind in state)
    weights = [torch.empty(p.shape, dtype=p.dtype) for p in module.parameters()]
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                _Pure(module, names, opset),
                (examples, weights),
                dynamo=True,
                input_names=[
                    *(f"state.{i}" for i in range(len(examples))),
                    *(f"{WEIGHT}{name}" for name in names),
                ],
                dynamic_shapes=_dynamic(dynamic, len(weights)),
                opset_version=max(opset, _EXPORTER_OPSET),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        raise ContractError(
            f"stage `{stage.name}` cannot be traced\n  {_first_line(error.__cause__ or error)}",
            hint="use static shapes and plain tensor operations in `forward`",
        ) from error
    assert program is not None
    model = _finish(program.model, stage, opset)
    if dynamic:
        _check_lengths(model.graph, dynamic, stage)
        # Layer models keep weights as the checkpoint has them, and their output shapes vary.
        return KindGraph(model, (), {})
    orders = _absorb_transposes(model.graph)
    return KindGraph(model, tuple(_spec(value, stage) for value in model.graph.outputs), orders)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error was caused by Ctrl-C: the exporter wraps it, or fails while cleaning up."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _dynamic(dynamic: Sequence[Collection[int]], weights: int) -> Any:
    """Return `dynamic` in the exporter's terms; the exporter infers which lengths are equal."""
    if not dynamic:
        return None
    auto = torch.export.Dim.AUTO
    return tuple(dict.fromkeys(axes, auto) for axes in dynamic), [None] * weights


def _check_lengths(graph: ir.Graph, dynamic: Sequence[Collection[int]], stage: Stage) -> None:
    """Refuse a graph that was traced for the example's lengths alone: it would run, and be wrong.

    Raises:
        ContractError: Names the input and the axis.
    """
    inputs = {value.name: value.shape for value in graph.inputs}
    for index, axes in enumerate(dynamic):
        shape = inputs.get(f"state.{index}") or ()
        if fixed := [axis for axis in axes if axis < len(shape) and isinstance(shape[axis], int)]:
            raise _one_length(stage, index, fixed[0])


def _one_length(stage: Stage, index: int, axis: int) -> ContractError:
    return ContractError(
        f"stage `{stage.name}` computes with one length of axis {axis} of its input {index}, which"
        " differs from call to call",
        hint="take lengths from `shape`, and do not turn them into numbers in `forward`",
    )


class _Pure(nn.Module):
    """Makes a module a function of state and weights, so that no parameter becomes a constant."""

    def __init__(self, module: nn.Module, names: Sequence[str], opset: int) -> None:
        super().__init__()

        def call(state: tuple[torch.Tensor, ...], weights: list[torch.Tensor]) -> Any:
            bound = dict(zip(names, weights, strict=True))
            with Older(opset):
                return torch.func.functional_call(module, bound, state)

        self.call = call

    def forward(
        self, state: tuple[torch.Tensor, ...], weights: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        out = self.call(state, weights)
        return (out,) if isinstance(out, torch.Tensor) else tuple(out)


def _finish(model: ir.Model, stage: Stage, opset: int) -> ir.Model:
    """Name the outputs, convert to `opset`, slim, check that the interface stayed, and rewrite."""
    for index, value in enumerate(model.graph.outputs):
        value.name = f"out.{index}"
    _lift_constants(model)
    if opset < _EXPORTER_OPSET:
        NewerAttributesPass(opset)(model)
        SplitToSlicesPass()(model)
    proto = ir.to_proto(model)
    before = _signature(proto)
    proto = _convert(proto, opset, stage)
    slimmed = onnxslim.slim(proto)
    _check_interface(before, _signature(slimmed), stage)
    result: ir.Model = ir.from_proto(slimmed)
    _lift_constants(result)
    rewrite(result)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result


def _check_interface(before: _Signature, after: _Signature, stage: Stage) -> None:
    """Compare inputs and outputs before and after slimming.

    Raises:
        ContractError: They differ, or turn out to have one length where they may have any (0).
    """
    for name in before.keys() & after.keys():
        source, _, index = name.partition(".")
        pairs = zip(before[name][1], after[name][1], strict=True)
        fixed = [axis for axis, (old, new) in enumerate(pairs) if new > old == 0]
        if source == "state" and fixed:
            raise _one_length(stage, int(index), fixed[0])
    # Unused inputs may disappear, e.g. the weights of a head that is not computed.
    lost = {name for name in before.keys() - after.keys() if name.startswith("out.")}
    if lost or not after.items() <= before.items():
        raise ContractError(
            f"slimming changed the interface of stage `{stage.name}`\n"
            f"  before: {before}\n  after: {after}",
            hint="report this with the versions that `axcore doctor` prints",
        )


def _absorb_transposes(graph: ir.Graph) -> dict[str, tuple[int, ...]]:
    """Remove Transpose nodes on weights; the weights are permuted once, when they are saved.

    Optimisers fold a Transpose into a constant, but here weights are graph inputs.
    """
    orders = {}
    for value in graph.inputs:
        users = [use.node for use in value.uses()]
        kinds = {(node.op_type, tuple(node.attributes.get_ints("perm", ()))) for node in users}
        # A weight that is also used untransposed has to stay as it is.
        if not str(value.name).startswith(WEIGHT) or len(kinds) != 1:
            continue
        ((operator, order),) = kinds
        if operator == "Transpose" and order and value.shape is not None:
            value.shape = ir.Shape([value.shape[axis] for axis in order])
            orders[str(value.name).removeprefix(WEIGHT)] = order
            for node in users:
                ir.convenience.replace_all_uses_with(node.outputs[0], value)
                graph.remove(node, safe=True)
    return orders


def _lift_constants(model: ir.Model) -> None:
    # As initializers, equal constants of several stages can be shared in the joined graph.
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _convert(proto: onnx.ModelProto, opset: int, stage: Stage) -> onnx.ModelProto:
    current = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if current == opset:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise ContractError(
            f"stage `{stage.name}` cannot be expressed in opset {opset}\n  {_first_line(error)}",
            hint=f"choose a later --opset (up to {OPSETS[-1]})",
        ) from error


def _spec(value: ir.Value, stage: Stage) -> Spec:
    shape, dtype = value.shape, value.dtype
    if shape is None or dtype is None or not shape.is_static():
        raise ContractError(
            f"output `{value.name}` of stage `{stage.name}` has no static shape: {shape}",
            hint="every shape must follow from the input shapes",
        )
    return tuple(shape.numpy()), ir.tensor_adapters.to_torch_dtype(dtype)


def _signature(proto: onnx.ModelProto) -> _Signature:
    """Map the name of every input and output to its type and shape."""
    signature: _Signature = {}
    for value in (*proto.graph.input, *proto.graph.output):
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        signature[value.name] = tensor.elem_type, shape
    return signature


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings about its own internals, which users cannot act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
