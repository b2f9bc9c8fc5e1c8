"""Building layer models: one trace for all layers and one for the head, then a file each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ...checkpoint.quantised import float_sources
from ...errors import ContractError, UsageError
from ...graph.trace import trace
from ...layer_files import GROUPS, LayerSpec, Provenance, data_file
from ...versions import code_digest
from .attention import turn_keys_in_products
from .data import DataFile
from .groups import HEAD_INPUTS, HEAD_OUTPUTS, Lengths, head_file, layer_file
from .precision import RULES, STATES, WEIGHTS, Precision, add_weight, cast, round_inside
from .products import multiply_integers

if TYPE_CHECKING:
    from pathlib import Path

    from ...component import Shape, Stage
    from ...graph.trace import KindGraph, Spec
    from ...language_model import Decoder, DecoderLayer
    from ...progress import Progress
    from ..contract import Build

OPSET = 18  # the exporter's own; nothing but ONNX Runtime reads these files
_WRITERS = 2  # one reads while the other writes


@dataclass(frozen=True)
class _Kind:
    """What the files of one kind share: the traced graph, its names, its groups.

    `floats` are the inputs and outputs that stay float32 whatever the type of states is.
    """

    graph: KindGraph
    inputs: Sequence[str]
    outputs: Sequence[str]
    groups: Sequence[Mapping[str, Any]]
    floats: frozenset[str] = frozenset()


def build_layers(build: Build) -> None:
    """Write the layer models and the head, all as one step: they appear together."""
    dynamic = build.request.options["dynamic-batch"] == "yes"
    decoder = build.decoder()
    precision = _precision(build, decoder)
    with decoder.checkpoint:
        lengths = Lengths.of(build.request, decoder, dynamic_batch=dynamic)
        files = _LayerFiles(lengths, decoder, precision, build.progress)
        build.step("layer-models", {"build": files.identity}, files.write)


def _precision(build: Build, decoder: Decoder) -> Precision:
    """Return what the user asked for, else what the builder of a board would do."""
    options = build.request.options
    if options["exact"] == "float32":
        return Precision("fp32", "fp32")
    weights = options.get("weight-type", build.request.llm.weight_type)
    if weights not in WEIGHTS:
        raise UsageError(
            f"weight-type {weights} is not offered", hint=f"choose from {', '.join(WEIGHTS)}"
        )
    rule = options.get("weight-rule", _rule(decoder.kind))
    if rule not in RULES:
        raise UsageError(
            f"weight-rule {rule} is not offered", hint=f"choose from {', '.join(RULES)}"
        )
    inside = options["round-inside"] == "yes"
    return Precision(options["hidden-state-type"], weights, rule, inside)


def _rule(kind: str) -> str:
    """Return by which rule builds of this type were seen to round; of others the first is taken."""
    return "signed" if kind.startswith("llama") else "absmax"


class _LayerFiles:
    """The files of one build.

    Attributes:
        identity: Digest of everything that each of them depends on.
    """

    def __init__(
        self, lengths: Lengths, decoder: Decoder, precision: Precision, progress: Progress
    ) -> None:
        self._lengths, self._decoder = lengths, decoder
        self._precision, self._progress = precision, progress
        self._weights = decoder.checkpoint.fingerprint()
        self.identity = self._digest()
        self._kinds: dict[str, _Kind] = {}

    def write(self, folder: Path) -> None:
        """Write them all; weights go to disk while graphs are traced."""
        decoder, chunk = self._decoder, self._lengths.chunk
        layers = {
            layer_file(decoder.kind, chunk, index): layer
            for index, layer in enumerate(decoder.specs)
        }
        stages = {stem: layer.stage for stem, layer in layers.items()}
        stages[head_file(decoder.kind)] = decoder.head
        files = {
            stem: DataFile(
                data_file(folder / f"{stem}.onnx"),
                stage,
                decoder.checkpoint,
                self._precision if stage is not decoder.head else self._precision.head,
                self._provenance(stem).fingerprint,
            )
            for stem, stage in stages.items()
        }
        read = {key for s in stages.values() for w in s.weights().values() for key in w.keys()}
        decoder.checkpoint.check_finite(float_sources(decoder.checkpoint, read))
        with (
            ThreadPoolExecutor(_WRITERS) as pool,
            self._progress.task("layer models", len(files), "files") as task,
        ):
            written = {stem: pool.submit(data.write) for stem, data in files.items()}
            try:
                for stem, data in files.items():
                    ir.save(self._model(stem, data, layers.get(stem)), folder / f"{stem}.onnx")
                    written[stem].result()
                    task.advance()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _provenance(self, stem: str) -> Provenance:
        return Provenance(stem, self.identity, self._weights)

    def _digest(self) -> str:
        checkpoint = self._decoder.checkpoint
        specs = self._decoder.specs
        owner = type(specs[0].stage.module).__module__.partition(".")[0]
        facts = [
            repr(self._precision),
            repr(self._lengths),
            *(repr(LayerSpec.of(layer)) for layer in specs),
            checkpoint.signature(),
            self._weights,
            checkpoint.config,
            *map(code_digest, ("axcore", owner)),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _model(self, stem: str, data: DataFile, layer: DecoderLayer | None) -> ir.Model:
        """Return a layer, or the head, as a model whose weights lie in its data file."""
        kind = self._kind(data.stage, layer)
        model = kind.graph.model.clone()
        graph = model.graph
        graph.name = stem
        for value in list(graph.inputs):
            source, _, name = str(value.name).partition(".")
            if source == "weight":
                graph.inputs.remove(value)
                value.name = name
                add_weight(graph, value, data.initializers(name))
        multiply_integers(graph)
        self._name_inputs(graph, kind)
        self._name_outputs(graph, kind)
        model.producer_name = "axcore"
        model.metadata_props[GROUPS] = json.dumps(kind.groups)
        if layer is not None:
            model.metadata_props.update(LayerSpec.of(layer).properties)
        model.metadata_props.update(self._provenance(stem).properties)
        return model

    def _kind(self, stage: Stage, layer: DecoderLayer | None) -> _Kind:
        if stage.kind not in self._kinds:
            kind = self._head(stage) if layer is None else self._layer(layer)
            self._kinds[stage.kind] = kind
            turn_keys_in_products(kind.graph.model.graph)
            if self._precision.inside:
                round_inside(kind.graph.model.graph, STATES[self._precision.states])
        return self._kinds[stage.kind]

    def _layer(self, layer: DecoderLayer) -> _Kind:
        spec, lengths = LayerSpec.of(layer), self._lengths
        groups = lengths.groups(spec)
        _check_outputs(layer, lengths)
        names = list(groups[0]["inputs"])
        example = lengths.example(spec)
        state: list[Spec] = [
            (shape, torch.int64 if name == "indices" else torch.float32)
            for name, (shape, _) in zip(names, example, strict=True)
        ]
        graph = trace(layer.stage, state, torch.float32, OPSET, [axes for _, axes in example])
        floats = [cache for cache in spec.caches if cache.dtype == "float32"]
        kept = {name for cache in floats for name in (cache.name, f"{cache.name}_out")}
        return _Kind(graph, names, list(groups[0]["outputs"]), groups, frozenset(kept))

    def _head(self, stage: Stage) -> _Kind:
        dynamic = self._lengths.dynamic_batch
        shape = (2 if dynamic else 1, 1, self._lengths.width)
        # No axis need be dynamic, but weights have to keep their order as those of layers do.
        axes = ((0,) if dynamic else (),)
        graph = trace(stage, [(shape, torch.float32)], torch.float32, OPSET, axes)
        made = [value.shape for value in graph.model.graph.outputs]
        logits = made[0]
        if len(made) > 1 or logits is None or len(logits) != 3 or not isinstance(logits[-1], int):
            returned = ", ".join(map(str, made))
            raise ContractError(
                f"stage `{stage.name}` returns {returned}, not logits [1, 1, vocabulary]"
            )
        groups = self._lengths.head_groups(logits[-1])
        return _Kind(graph, HEAD_INPUTS, HEAD_OUTPUTS, groups)

    def _name_inputs(self, graph: ir.Graph, kind: _Kind) -> None:
        """Give inputs the contract's names, dtypes and order; the graph computes in float32."""
        traced = {str(value.name): value for value in graph.inputs}
        graph.inputs.clear()
        for index, name in enumerate(kind.inputs):
            port = ir.Value(name=name, shape=_dynamic_shape(kind, "inputs", name))
            port.type = ir.TensorType(self._port_dtype(kind, name))
            graph.inputs.append(port)
            # What the computation does not use is not in the trace; callers feed it all the same.
            if old := traced.get(f"state.{index}"):
                self._adapt(graph, port, old)

    def _adapt(self, graph: ir.Graph, port: ir.Value, old: ir.Value) -> None:
        assert old.dtype is not None
        nodes = []
        if port.dtype != old.dtype:
            nodes.append(cast(port, old.dtype, f"{port.name}.{old.dtype.name.lower()}"))
        new = nodes[0].outputs[0] if nodes else port
        if port.name == "indices" and self._lengths.position_rows > 1:
            rows = ir.val("position_rows", const_value=ir.tensor([self._lengths.position_rows, 1]))
            graph.register_initializer(rows)
            nodes.append(ir.node("Expand", [new, rows], name="indices/Expand"))
            new = nodes[-1].outputs[0]
        graph.insert_before(graph[0], nodes)
        ir.convenience.replace_all_uses_with(old, new)

    def _name_outputs(self, graph: ir.Graph, kind: _Kind) -> None:
        for index, name in enumerate(kind.outputs):
            old, dtype = graph.outputs[index], self._port_dtype(kind, name)
            if old.dtype != dtype:
                old.name = f"{name}.float"
                node = cast(old, dtype, name)
                graph.append(node)
                graph.outputs[index] = node.outputs[0]
            graph.outputs[index].name = name
            graph.outputs[index].shape = _dynamic_shape(kind, "outputs", name)

    def _port_dtype(self, kind: _Kind, name: str) -> ir.DataType:
        if name == "indices":
            return ir.DataType.UINT32
        return ir.DataType.FLOAT if name in kind.floats else STATES[self._precision.states]


def _check_outputs(layer: DecoderLayer, lengths: Lengths) -> None:
    """Compare what a layer returns with what its description promises, at two sets of lengths.

    Nothing is computed: tensors have shapes alone.

    Raises:
        ContractError: It returns other tensors, or other shapes.
    """
    stage, spec = layer.stage, LayerSpec.of(layer)
    for group in lengths.examples(spec):
        given = ", ".join(f"{name} {list(shape)}" for name, shape in group["inputs"].items())
        try:
            made = _shapes(stage, group["inputs"])
        except Exception as error:  # whatever the module raises
            raise ContractError(f"stage `{stage.name}` fails: {error}\n  given {given}") from error
        if made != (meant := list(group["outputs"].values())):
            raise ContractError(
                f"stage `{stage.name}` returns {len(made)} tensors, {made},"
                f" not {len(meant)}, {meant}: {', '.join(group['outputs'])}\n  given {given}"
            )


def _shapes(stage: Stage, inputs: Mapping[str, Shape]) -> list[Shape]:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        weights = {name: torch.empty(p.shape) for name, p in stage.module.named_parameters()}
        given = tuple(
            torch.empty(shape, dtype=torch.int64 if name == "indices" else torch.float32)
            for name, shape in inputs.items()
        )
        made = torch.func.functional_call(stage.module, weights, given)
    return [tuple(one.shape) for one in ((made,) if isinstance(made, torch.Tensor) else made)]


def _dynamic_shape(kind: _Kind, side: str, name: str) -> ir.Shape:
    """Return the shape that all groups agree in; an axis in which they differ gets a name."""
    shapes = {(g["empty"] if name in g.get("empty", ()) else g[side])[name] for g in kind.groups}
    dynamic = name in kind.groups[0]["dynamic"]
    return ir.Shape(
        f"{name}.{axis}" if len(set(lengths)) > 1 or (dynamic and axis == 0) else lengths[0]
        for axis, lengths in enumerate(zip(*shapes, strict=True))
    )
