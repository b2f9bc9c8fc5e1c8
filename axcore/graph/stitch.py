"""Join the graphs of a component's stages into one model; weights stay lazy until it is saved."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import onnx
import onnx.helper
import onnx_ir as ir
import torch

from ..errors import ContractError
from .names import STAGES_KEY
from .trace import KindGraph, Spec, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..component import Component, Port, Stage, Weight
    from ..progress import Task


class Tracer:
    """Traces each kind of stage once per input shape and caches the graph."""

    def __init__(self, patch: Callable[[Stage], Stage], dtype: torch.dtype, opset: int) -> None:
        self._patch, self._dtype, self._opset = patch, dtype, opset
        self._patched: dict[str, Stage] = {}
        self._graphs: dict[tuple[str, tuple[Spec, ...]], KindGraph] = {}

    def patched(self, stage: Stage) -> Stage:
        """Return `stage` as the family's `patch_attention` changed it; one module per kind."""
        if stage.kind not in self._patched:
            self._patched[stage.kind] = self._patch(stage)
        return self._patched[stage.kind]

    def graph(self, stage: Stage, state: tuple[Spec, ...]) -> KindGraph:
        """Return the traced graph of the stage's kind for this input."""
        key = stage.kind, state
        if key not in self._graphs:
            self._graphs[key] = trace(self.patched(stage), state, self._dtype, self._opset)
        return self._graphs[key]

    @property
    def traces(self) -> int:
        """How many graphs were traced."""
        return len(self._graphs)


def port_spec(port: Port, dtype: torch.dtype) -> Spec:
    """Return shape and torch dtype of a port in a graph of precision `dtype`."""
    return port.shape, dtype if port.dtype == "float32" else getattr(torch, port.dtype)


def stitch(
    component: Component,
    tracer: Tracer,
    load: Callable[[Weight], torch.Tensor],
    dtype: torch.dtype,
    cuts: Sequence[int],
    task: Task,
) -> list[ir.Model]:
    """Join the component's stages into one model, or into one per part between `cuts`.

    Args:
        component: Its ports name the first part's inputs and the last part's outputs; a value
            between stages is named after the stage that returns it.
        load: Reads one weight; called while the model is saved.
        cuts: Ascending indices of stages that begin a new part.

    Returns:
        Models whose initializers are lazy tensors. Part i's outputs are part i+1's inputs.
    """
    specs = tuple(port_spec(port, dtype) for port in component.inputs)
    names = [port.name for port in component.inputs]
    bounds = [0, *cuts, len(component.stages)]
    models = []
    for start, stop in pairwise(bounds):
        part = _Part(names, specs, lambda weight: load(weight).to(dtype).contiguous())
        for stage in component.stages[start:stop]:
            last = stage is component.stages[-1]
            ports = [port.name for port in component.outputs] if last else None
            specs = part.append(stage, tracer.graph(stage, specs), ports)
            task.advance()
        names = [str(value.name) for value in part.state]
        models.append(part.finish(component.name, component.stages[start:stop]))
    check_outputs(component, specs, dtype)
    return models


def boundary_names(stage: Stage, count: int) -> list[str]:
    """Return the names of the `count` values that a stage passes to the next one."""
    return [stage.name, *(f"{stage.name}.{index}" for index in range(1, count))]


class _Part:
    """A model under construction."""

    def __init__(
        self, names: Sequence[str], specs: Sequence[Spec], load: Callable[[Weight], torch.Tensor]
    ) -> None:
        self.load = load
        self.state = [_value(name, spec) for name, spec in zip(names, specs, strict=True)]
        self.opsets: dict[str, int] = {}
        self.constants: dict[tuple[object, ...], ir.Value] = {}
        self.graph = ir.Graph(list(self.state), [], nodes=[])

    def append(
        self, stage: Stage, kind: KindGraph, ports: Sequence[str] | None
    ) -> tuple[Spec, ...]:
        """Append a stage's nodes; its outputs become the state. Returns their shapes and dtypes."""
        copy = kind.model.graph.clone()  # other stages of the kind need the original
        origins = stage.weights()
        for value in list(copy.inputs):
            source, _, name = str(value.name).partition(".")
            if source == "state":
                replacement = self.state[int(name)]
            else:
                origin = origins[name]
                if name in kind.orders:
                    origin = origin.transpose(*kind.orders[name])
                replacement = self._weight(f"{stage.name}.{name}", value, origin)
            ir.convenience.replace_all_uses_with(value, replacement)
        for value in list(copy.initializers.values()):
            ir.convenience.replace_all_uses_with(value, self._constant(value))
        outputs = list(copy.outputs)
        self._move(copy, stage.name)
        names = ports or boundary_names(stage, len(outputs))
        for value, name in zip(outputs, names, strict=True):
            value.name = name
        self.state = outputs
        self.opsets.update(kind.model.opset_imports)
        return kind.outputs

    def finish(self, name: str, stages: Sequence[Stage]) -> ir.Model:
        """Return the model."""
        self.graph.name = name
        self.graph.outputs.extend(self.state)
        self.graph.opset_imports.update(self.opsets)
        listed = json.dumps([stage.name for stage in stages])
        return ir.Model(
            self.graph,
            ir_version=_oldest_ir_version(self.opsets),
            producer_name="axcore",
            metadata_props={STAGES_KEY: listed},
        )

    def _move(self, source: ir.Graph, stage: str) -> None:
        """Move the nodes of `source` here, prefixing every name with the stage's."""
        nodes = list(source)
        counts: dict[str, int] = {}
        source.outputs.clear()
        source.remove(nodes)
        for node in nodes:
            number = counts[node.op_type] = counts.get(node.op_type, -1) + 1
            node.name = f"{stage}/{node.op_type}_{number}"
            for index, value in enumerate(node.outputs):
                value.name = f"{node.name}.{index}" if index else node.name
        self.graph.extend(nodes)

    def _weight(self, name: str, value: ir.Value, origin: Weight) -> ir.Value:
        assert value.shape is not None
        assert value.dtype is not None
        new = ir.Value(name=name, shape=value.shape, type=ir.TensorType(value.dtype))

        # Called while saving, so that no more than a few tensors are in memory.
        def materialise() -> ir.TensorProtocol:
            return ir.tensor_adapters.TorchTensor(self.load(origin), name=name)

        new.const_value = ir.LazyTensor(materialise, value.dtype, value.shape, name=name)
        self.graph.register_initializer(new)
        return new

    def _constant(self, value: ir.Value) -> ir.Value:
        """Return the initializer with this constant; stages with equal constants share one."""
        tensor = value.const_value
        assert tensor is not None
        key = tensor.dtype, tuple(tensor.shape), tensor.tobytes()
        if key not in self.constants:
            new = ir.Value(
                name=f"constant_{len(self.constants)}", shape=value.shape, type=value.type
            )
            new.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=new.name)
            self.graph.register_initializer(new)
            self.constants[key] = new
        return self.constants[key]


def _oldest_ir_version(opsets: dict[str, int]) -> int:
    """Vendor tools pin old onnx releases, which refuse files of a newer IR version."""
    entries = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return onnx.helper.find_min_ir_version_for(entries)


def _value(name: str, spec: Spec) -> ir.Value:
    shape, dtype = spec
    kind = ir.TensorType(ir.tensor_adapters.from_torch_dtype(dtype))
    return ir.Value(name=name, shape=ir.Shape(shape), type=kind)


def check_outputs(component: Component, made: Sequence[Spec], dtype: torch.dtype) -> None:
    """Compare what the last stage returns with the component's output ports.

    Raises:
        ContractError: They differ.
    """
    promised = [port_spec(port, dtype) for port in component.outputs]
    if list(made) != promised:
        raise ContractError(
            f"component `{component.name}` promises {_listing(promised)}\n"
            f"  its stages return {_listing(made)}",
            hint="make the ports of `export_vision` and the last stage agree",
        )


def _listing(specs: Sequence[Spec]) -> str:
    return ", ".join(f"{str(dtype)[6:]} {list(shape)}" for shape, dtype in specs)
