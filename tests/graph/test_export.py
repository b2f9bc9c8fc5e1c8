"""Exported files: they compute what the model does, parts make up the whole, weights stay lazy."""

from __future__ import annotations

import threading
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.checker
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from axcore import Component, Port, Silent, Stage
from axcore.errors import ContractError
from axcore.graph.attention import explicit
from axcore.graph.export import part_stems, save
from axcore.graph.shapes import part_ports
from axcore.graph.stitch import STAGES_KEY, Tracer, stitch
from axcore.request import OPSETS
from axcore.toolchains.pulsar2 import Pulsar2
from axcore.toolchains.pulsar2.chips import chip_target

from . import toy
from .conftest import DEPTH, Exported, export

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from axcore.checkpoint import Checkpoint

STAGES = len(toy.stages(DEPTH))


def run(paths: Sequence[Path], feed: dict[str, Any]) -> dict[str, Any]:
    """Run files in a row under ONNX Runtime, each on what the one before returned."""
    values = feed
    for path in paths:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        given = {value.name: values[value.name] for value in session.get_inputs()}
        values = dict(zip(names, session.run(names, given), strict=True))
    return values


# What a graph computes ---------------------------------------------------------------------------


CASES = [("float32", opset) for opset in OPSETS] + [("float16", 16), ("float16", 17)]


@pytest.mark.parametrize(("dtype", "opset"), CASES)
def test_the_graph_computes_what_the_model_does(
    checkpoint: Checkpoint, tensors: dict[str, Tensor], tmp_path: Path, dtype: Any, opset: int
) -> None:
    """ONNX Runtime's tokens, in every operator set. Oracle: `toy.reference` in float32."""
    kind = getattr(torch, dtype)
    tracer = Tracer(explicit, kind, opset)
    (path,) = export(toy.component(DEPTH), checkpoint, tracer, tmp_path, dtype=dtype)
    made = run([path], {"pixels": toy.pixels().to(kind).numpy()})["tokens"]
    expected = toy.reference(toy.pixels(), tensors, DEPTH)
    tolerance = 1e-5 if dtype == "float32" else 5e-3
    assert made.dtype == np.dtype(dtype)
    np.testing.assert_allclose(made, expected, atol=tolerance, rtol=tolerance)
    assert {(entry.domain, entry.version) for entry in onnx.load(path).opset_import} == {
        ("", opset)
    }


def test_bfloat16_keeps_the_bits(
    checkpoint: Checkpoint, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    """Weights are rounded as torch rounds them. Oracle: torch; ONNX Runtime cannot run it."""
    component, kind = toy.component(DEPTH), torch.bfloat16
    tracer = Tracer(explicit, kind, 17)
    (path,) = export(component, checkpoint, tracer, tmp_path, dtype="bfloat16")
    graph = onnx.load(path).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    (made,) = (entry.raw_data for entry in graph.initializer if entry.name == "head.head.weight")
    expected = tensors["tower.head.weight"][: toy.OUT].to(kind).view(torch.int16)
    assert made == expected.numpy().tobytes()


def test_one_trace_per_kind_whatever_the_depth(checkpoint: Checkpoint, tracer: Tracer) -> None:
    """Four kinds are traced for 2, 6 and 40 blocks. Oracle: the toy's list of kinds."""
    for depth in (1, 3, 20):
        component = toy.component(depth)
        with Silent().task("", 0) as task:
            stitch(component, tracer, _never, torch.float32, (), task)
        assert len(component.stages) == 2 * depth + 2
        assert tracer.traces == 4


def test_nodes_are_named_after_their_stage(exported: Exported) -> None:
    """Every node's prefix is a stage, in their order. Oracle: the component."""
    model = onnx.load(exported.paths[0], load_external_data=False)
    prefixes = dict.fromkeys(node.name.partition("/")[0] for node in model.graph.node)
    names = [stage.name for stage in exported.component.stages]
    assert list(prefixes) == names
    listed = {entry.key: entry.value for entry in model.metadata_props}
    assert listed == {STAGES_KEY: str(names).replace("'", '"')}


def test_the_graph_has_only_listed_operators(exported: Exported) -> None:
    """Fused attention and layer norm included. Oracle: the operator table of the chip."""
    assert Pulsar2().lint(exported.paths[0], chip_target("AX650")) == []


# Parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cuts", [(), (1,), (3,), (1, 4), (2, 3, 5), tuple(range(1, STAGES))], ids=str
)
def test_parts_make_up_the_whole(exported: Exported, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Nodes in order, and every weight byte for byte. Oracle: the unsplit file.

    Every part is valid by itself and has the ports that were foreseen, and in a row they compute
    what the whole computes.
    """
    parts = exported.again(tmp_path, cuts)
    assert [path.stem for path in parts] == part_stems(exported.component, cuts)
    foreseen = part_ports(exported.component, cuts, torch.float32)
    for path, (inputs, outputs) in zip(parts, foreseen, strict=True):
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(path, load_external_data=False).graph
        assert [_port(value) for value in graph.input] == list(inputs)
        assert [_port(value) for value in graph.output] == list(outputs)
    whole = _spelt_out([onnx.load(exported.paths[0])])
    assert _spelt_out([onnx.load(path) for path in parts]) == whole
    feed = {"pixels": toy.pixels().numpy()}
    one, many = run(exported.paths, feed), run(parts, feed)
    np.testing.assert_allclose(many["tokens"], one["tokens"], atol=1e-6)


def test_the_same_export_twice_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    """A result depends on its inputs alone, fresh traces included. Oracle: the first export."""
    fresh = Tracer(explicit, torch.float32, 17)
    (path,) = export(exported.component, exported.checkpoint, fresh, tmp_path)
    for suffix in (".onnx", ".onnx.data"):
        before = exported.paths[0].with_suffix(suffix).read_bytes()
        assert path.with_suffix(suffix).read_bytes() == before


# Files and memory --------------------------------------------------------------------------------


def test_weights_lie_outside_the_graph_file(exported: Exported) -> None:
    """Protobuf's 2 GB bound the graph alone, and the data file holds nothing but tensors.

    Oracle: offsets and lengths in the graph file, and the sizes of both files.
    """
    path = exported.paths[0]
    model = onnx.load(path, load_external_data=False)
    spans, inlined = [], 0
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            assert entry["location"] == f"{path.name}.data"
            spans.append((int(entry["offset"]), int(entry["offset"]) + int(entry["length"])))
        else:
            inlined += len(tensor.raw_data)
            assert len(tensor.raw_data) <= 256
    spans.sort()
    assert spans[0][0] == 0
    assert all(stop == start for (_, stop), (start, _) in pairwise(spans))
    assert spans[-1][1] == path.with_suffix(".onnx.data").stat().st_size
    weights = sum(tensor.numel() * 4 for key, tensor in exported.tensors.items() if "tower" in key)
    unused = toy.OUT * 2 * toy.WIDTH * 4  # the half of the head that the toy leaves out
    constants = toy.positions().numel() * 4
    assert 0 <= spans[-1][1] + inlined - (weights - unused + constants) < 256
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}.data"]


class Chain(nn.Module):
    """One matrix, 16 MB in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2048, 2048, bias=False, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.proj(x)
        return projected


def test_few_weights_are_in_memory_at_a_time(tmp_path: Path) -> None:
    """Saving 320 MB of weights holds a few of them at once. Oracle: counting live tensors.

    Nothing is read before the file is written.
    """
    component = Component(
        "deep",
        "deep",
        tuple(Stage(f"chain.{i}", Chain(), f"chain.{i}.", "chain") for i in range(20)),
        inputs=(Port("x", (1, 2048)),),
        outputs=(Port("y", (1, 2048)),),
    )
    alive = _Alive()
    tracer = Tracer(explicit, torch.float32, 17)
    with Silent().task("", 0) as task:
        (model,) = stitch(component, tracer, alive.load, torch.float32, (), task)
    assert alive.loads == 0
    save(model, tmp_path / "deep.onnx", Silent())
    assert alive.loads == 20
    assert alive.now == 0
    # Two writers, each with one that it writes and one that it reads.
    assert alive.peak <= 4 * (16 << 20)
    assert (tmp_path / "deep.onnx.data").stat().st_size == 20 * 2048 * 2048 * 4
    assert (tmp_path / "deep.onnx").stat().st_size < 20_000


class _Alive:
    """Counts the bytes of the tensors it hands out that somebody still holds."""

    def __init__(self) -> None:
        self.loads = self.now = self.peak = 0
        self._lock = threading.Lock()

    def load(self, weight: object) -> Tensor:
        tensor = torch.ones(2048, 2048)
        with self._lock:
            self.loads += 1
            self.now += tensor.nbytes
            self.peak = max(self.peak, self.now)
        weakref.finalize(tensor.untyped_storage(), self._drop, tensor.nbytes)
        return tensor

    def _drop(self, count: int) -> None:
        with self._lock:
            self.now -= count


# What cannot be exported -------------------------------------------------------------------------


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Constant(nn.Module):
    """A constant that was put where only parameters belong."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(4, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.table
        return x * table


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), "stage `odd` cannot be traced"),
        (Constant(), "stage `odd` has buffers on the meta device: table"),
    ],
)
def test_a_stage_that_cannot_be_traced_is_named(module: nn.Module, message: str) -> None:
    """The error names the stage and says what is wrong. Oracle: the stage's name."""
    with pytest.raises(ContractError, match=message) as caught:
        Tracer(explicit, torch.float32, 17).graph(Stage("odd", module), (((4,), torch.float32),))
    assert caught.value.hint


def test_an_interruption_while_tracing_is_one() -> None:
    """Even where cleaning up after it fails, as half-finished imports make it. Oracle: it."""

    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            try:
                raise KeyboardInterrupt
            finally:
                raise AttributeError("half imported")

    stage = Stage("odd", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        Tracer(explicit, torch.float32, 17).graph(stage, (((4,), torch.float32),))


def test_an_operator_that_the_set_lacks_is_reported(tmp_path: Path) -> None:
    """An operator newer than the set asked for. Oracle: onnx's own version converter."""

    class Newer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bitwise_and(x, x + 1)  # BitwiseAnd came with 18

    stage = Stage("odd", Newer())
    with pytest.raises(ContractError, match="stage `odd` cannot be expressed in opset 17"):
        Tracer(explicit, torch.float32, 17).graph(stage, (((4,), torch.int32),))


def _never(weight: object) -> Tensor:
    raise AssertionError(f"{weight} was read while stitching")


def _spelt_out(models: Sequence[onnx.ModelProto]) -> tuple[list[object], dict[str, bytes]]:
    """Return the nodes of models in a row, constants by value, and the weights by name."""
    nodes: list[object] = []
    weights: dict[str, bytes] = {}
    for model in models:
        content = {entry.name: entry.raw_data for entry in model.graph.initializer}
        shared = {name for name in content if name.startswith("constant_")}
        weights |= {name: content[name] for name in content.keys() - shared}
        for node in model.graph.node:
            inputs = [content[name] if name in shared else name for name in node.input]
            attributes = [entry.SerializeToString() for entry in node.attribute]
            nodes.append((node.name, node.op_type, inputs, list(node.output), attributes))
    return nodes, weights


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return Port(value.name, tuple(dim.dim_value for dim in tensor.shape.dim), dtype)


class _Batched(nn.Module):
    """Two projections of a state with a batch axis, which exporters write as turned products."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10, device="meta")
        self.tied = nn.Parameter(torch.empty(10, 10, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Use one weight both as it is and turned."""
        wide: Tensor = self.up(x)
        return wide @ self.tied + wide @ self.tied.T


def test_no_weight_is_turned_at_run_time(tmp_path: Path) -> None:
    """A weight that is only used turned is bound turned; one used both ways is left alone.

    Oracle: the products written out in torch, and the operators of the graph.
    """
    stored = {"up.weight": torch.randn(10, 6), "up.bias": torch.randn(10)}
    stored["tied"] = torch.randn(10, 10)
    component = Component(
        "batched", "batched", (Stage("s", _Batched()),), (Port("x", (1, 4, 6)),),
        (Port("y", (1, 4, 10)),),
    )  # fmt: skip
    with Silent().task("", 0) as task:
        tracer = Tracer(lambda stage: stage, torch.float32, 17)
        load = lambda weight: weight.resolve(stored.__getitem__)  # noqa: E731
        (model,) = stitch(component, tracer, load, torch.float32, (), task)
    turned = [node.inputs[0].name for node in model.graph if node.op_type == "Transpose"]
    assert turned == ["s.tied"]
    save(model, tmp_path / "batched.onnx", Silent())
    x = torch.randn(1, 4, 6)
    wide = x @ stored["up.weight"].T + stored["up.bias"]
    expected = wide @ stored["tied"] + wide @ stored["tied"].T
    made = run([tmp_path / "batched.onnx"], {"x": x.numpy()})["y"]
    assert np.abs(made - expected.numpy()).max() < 1e-5
