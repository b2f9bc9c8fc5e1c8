"""Passes leave a graph's meaning alone. Oracles: onnx's schemas and ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx_ir.passes import common

from axcore.graph.lint import lint_model
from axcore.graph.passes import (
    PASSES,
    POWERS,
    BiasRowsPass,
    ConstantsLastPass,
    ExplicitAttributesPass,
    GatherRowsPass,
    NewerAttributesPass,
    PowersPass,
    ReductionAxesPass,
    SplitToSlicesPass,
    rewrite,
)
from axcore.toolchains.pulsar2.chips import chip_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, Any]

AX650 = chip_target("AX650").operators
assert AX650 is not None


def parsed(text: str, opset: int = 18) -> ir.Model:
    head = f'<ir_version: 9, opset_import: ["" : {opset}]>\nagraph '
    model = ir.from_proto(onnx.parser.parse_model(head + text))
    common.ShapeInferencePass()(model)
    return model


def run(model: ir.Model, **inputs: Array) -> list[Array]:
    """Compute a model as it stands: nothing is optimised, so each node does its own."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[Array] = session.run(None, inputs)
    return results


def attributes(model: ir.Model) -> dict[str, set[str]]:
    return {node.op_type: set(node.attributes) for node in model.graph.all_nodes()}


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# All passes --------------------------------------------------------------------------------------

# A step takes `{x}`, float [3, 4], and gives `{y}` of that shape; each is refused by the lint, or
# by an older front end, as it stands.
STEPS = {
    "cube": "{y} = Pow({x}, THREE)",
    "square": "{y} = Pow({x}, TWO)",
    "scale": "{y} = Mul(ROW, {x})",
    "shift": "{y} = Add(MATRIX, {x})",
    "reciprocal": "{y} = Reciprocal({x})",
    "live product": "{y}a = Softmax({x}) {y}b = Transpose({x}) {y}c = MatMul({y}a, {y}b) "
    "{y}d = MatMul({y}c, {x}) {y} = Add(VECTOR, {y}d)",
    "mean": "{y}a = ReduceMean({x}) {y} = Add({x}, {y}a)",
    "mean of rows": "{y}a = ReduceMean({x}, LAST) {y} = Sub({x}, {y}a)",
    "norm": "{y} = LayerNormalization({x}, VECTOR)",
    "linear": "{y} = Gemm({x}, SQUARE, VECTOR)",
    "clip": "{y} = Elu({x})",
    "reshape": "{y}a = Reshape<allowzero=1>({x}, FLAT) {y} = Reshape({y}a, BACK)",
    "squeeze": "{y}a = Unsqueeze({x}, FRONT) {y} = Squeeze({y}a, FRONT)",
    "conv": "{y}a = Reshape({x}, IMAGE) {y}b = Conv({y}a, KERNEL) {y} = Reshape({y}b, BACK)",
    "sort": "{y}, {y}i = TopK({x}, FOUR)",
    "gather": "{y} = Gather({x}, ORDER)",
    "gather a table": "{y}a = Gather<axis=1>({x}, TABLE) {y} = Reshape({y}a, BACK)",
    "gather one": "{y}a = Gather({x}, ONE) {y} = Add({x}, {y}a)",
}  # fmt: skip
CONSTANTS = (
    "float THREE = {3}, float TWO = {2}, float[4] VECTOR = {0.5, -1, 2, 0.25}, "
    "float[1,4] ROW = {1.5, -0.5, 3, 0.1}, "
    "float[3,4] MATRIX = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, "
    "float[4,4] SQUARE = {1, 2, 3, 4, 0, 1, 0, 1, 2, 2, 1, 1, 0, 0, 1, 3}, int64[1] LAST = {-1}, "
    "int64[1] FLAT = {-1}, int64[2] BACK = {3, 4}, int64[1] FRONT = {0}, "
    "int64[4] IMAGE = {1, 1, 3, 4}, float[1,1,1,1] KERNEL = {0.7}, int64[1] FOUR = {4}, "
    "int64[3] ORDER = {2, 0, 1}, int64[2,2] TABLE = {3, 0, -1, 2}, int64 ONE = {-2}"
)


def chain(steps: Sequence[str], opset: int) -> ir.Model:
    body = " ".join(
        STEPS[step].format(x=f"t{index}", y=f"t{index + 1}") for index, step in enumerate(steps)
    )
    return parsed(
        f"(float[3,4] t0) => (float[3,4] t{len(steps)}) <{CONSTANTS}> {{ {body} }}", opset
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_any_graph_computes_the_same_bits_and_is_clean(steps: list[str], seed: int) -> None:
    """Of small graphs of every form. Oracles: the graph before under ONNX Runtime, the lint."""
    model = chain(steps, 18)
    x = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    before = run(model, t0=x)
    rewrite(model)
    after = run(model, t0=x)
    np.testing.assert_array_equal(after, before)
    assert [f for f in lint_model(model, AX650) if f.op not in ("Unsqueeze",)] == []
    again = ir.from_proto(ir.to_proto(model))
    for kind in PASSES:
        assert not kind()(again).modified
    assert ir.to_proto(again) == ir.to_proto(model)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("opset", [17, 20])
def test_every_operator_set(step: str, opset: int) -> None:
    """Axes move from attributes to inputs between them. Oracle: the graph before."""
    if opset == 17 and step == "mean of rows":
        pytest.skip("axes are an attribute in 17")
    model = chain([step], opset)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    before = run(model, t0=x)
    np.testing.assert_array_equal(run(rewrite(model), t0=x), before)


# One by one --------------------------------------------------------------------------------------


def cubes(size: int) -> ir.Model:
    return parsed(
        f"(float[1,{size}] x) => (float[1,{size}] y) <float c = {{3}}> {{ y = Pow(x, c) }}"
    )


@settings(max_examples=20, deadline=None)
@given(arrays(np.float32, (1, 64)))
def test_a_cube_is_the_same_to_the_bit(x: Array) -> None:
    """Subnormals and overflow included. Oracles: ONNX Runtime's Pow and torch's."""
    model = cubes(x.size)
    expected = run(model, x=x)[0]
    assert PowersPass()(model).modified
    assert kinds(model) == ["Mul", "Mul"]
    made = run(model, x=x)[0]
    numbers = ~np.isnan(expected)  # the sign of a NaN means nothing
    assert made[numbers].tobytes() == expected[numbers].tobytes()
    np.testing.assert_array_equal(np.isnan(made), ~numbers)
    torchs = (torch.from_numpy(x) ** 3).numpy()
    assert made[numbers].tobytes() == torchs[numbers].tobytes()


def test_many_cubes_are_the_same_to_the_bit() -> None:
    """Of every exponent and sign. Oracles: ONNX Runtime's Pow and torch's."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, (1, 100_000), dtype=np.uint32)
    x = bits.view(np.float32)
    x = np.where(np.isnan(x), np.float32(0), x)
    model = cubes(x.size)
    expected = run(model, x=x)[0]
    PowersPass()(model)
    assert run(model, x=x)[0].tobytes() == expected.tobytes()
    assert (torch.from_numpy(x) ** 3).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("exponent", POWERS)
def test_higher_powers_stay_within_their_roundings(exponent: int) -> None:
    """Each product rounds once. Oracle: the power in float64, half a unit for each product."""
    x = np.random.default_rng(1).normal(size=(1, 1000)).astype(np.float32)
    model = parsed(
        f"(float[1,1000] x) => (float[1,1000] y) <float c = {{{exponent}}}> {{ y = Pow(x, c) }}"
    )
    assert PowersPass()(model).modified
    assert set(kinds(model)) == {"Mul"}
    exact = x.astype(np.float64) ** exponent
    np.testing.assert_allclose(run(model, x=x)[0], exact, rtol=exponent * 2**-24)


@pytest.mark.parametrize("exponent", ["{2}", "{4}", "{0.5}", "{2.5}", "{-1}", "{1}", "{9}"])
def test_other_powers_stay(exponent: str) -> None:
    """What the compiler has, and what multiplications would not give. Oracle: the node."""
    model = parsed(f"(float[2] x) => (float[2] y) <float c = {exponent}> {{ y = Pow(x, c) }}")
    assert not PowersPass()(model).modified


def test_a_power_that_widens_or_is_computed_stays() -> None:
    """An exponent of higher rank shapes the result; a computed one has no value yet."""
    wide = parsed("(float[2] x) => (y) <float[1,1] c = {3}> { y = Pow(x, c) }")
    computed = parsed("(float[2] x, float c) => (float[2] y) { y = Pow(x, c) }")
    assert not PowersPass()(wide).modified
    assert not PowersPass()(computed).modified


def test_parameters_count_as_constants() -> None:
    """Graphs are rewritten while weights are inputs. Oracle: written out."""
    model = parsed(
        "(float[2,2] state, float[2,2] w) => (float[2,2] y) { t = Transpose(w) y = Mul(t, state) }"
    )
    model.graph.inputs[1].name = "weight.w"
    assert ConstantsLastPass()(model).modified
    assert [value.name for value in model.graph[1].inputs] == ["state", "t"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ("p = MatMul(a, b) y = Add(p, weight)", 1),
        ("p = MatMul(a, b) y = Add(constant, p)", 1),
        ("p = MatMul(a, matrix) y = Add(p, constant)", 0),
        ("p = MatMul(a, b) y = Add(p, matrix)", 0),
        ("p = Mul(a, b) y = Add(p, constant)", 0),
    ],
)
def test_a_bias_beside_a_computed_weight_becomes_a_row(body: str, rows: int) -> None:
    """Only there: elsewhere the fused form is wanted. Oracles: the shape, ONNX Runtime."""
    model = parsed(
        "(float[2,2] a, float[2,2] b, float[2] w) => (float[2,2] y) <float[2] constant = {1, 2},"
        f" float[2,2] matrix = {{1, 2, 3, 4}}> {{ {body.replace('weight', 'w')} }}"
    )
    generator = np.random.default_rng(0)
    values = [generator.normal(size=size).astype(np.float32) for size in ((2, 2), (2, 2), 2)]
    before = run(model, a=values[0], b=values[1], w=values[2])
    model.graph.inputs[2].name = "weight.w"
    assert BiasRowsPass()(model).modified == bool(rows)
    add = model.graph[-1]
    shapes = [tuple(value.shape) for value in add.inputs]  # type: ignore[union-attr, arg-type]
    assert shapes.count((1, 2)) == rows
    model.graph.inputs[2].name = "w"
    np.testing.assert_array_equal(run(model, a=values[0], b=values[1], w=values[2]), before)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2),
    st.lists(st.integers(1, 3), max_size=3).filter(lambda sizes: len(sizes) != 1),
    st.integers(0, 2**32 - 1),
)
def test_a_table_of_indices_gathers_rows(axis: int, sizes: list[int], seed: int) -> None:
    """Whatever shape it has, along every axis, counted from either end. Oracle: numpy's take."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, 3, 4)).astype(np.float32)
    indices = random.integers(-x.shape[axis], x.shape[axis], sizes)
    expected = np.take(x, indices, axis)
    value = onnx.numpy_helper.from_array(indices, "i")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["x", "i"], ["y"], axis=axis)],
        "agraph",
        [onnx.helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.helper.make_tensor_value_info("y", 1, expected.shape)],
        [value],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9))
    assert GatherRowsPass()(model).modified
    assert kinds(model) == ["Gather", "Reshape"]
    assert len(model.graph[0].inputs[1].shape) == 1  # type: ignore[union-attr, arg-type]
    np.testing.assert_array_equal(run(model, x=x)[0], expected)


def test_indices_that_are_computed_stay() -> None:
    """Their values are not known. Oracle: the graph before."""
    model = parsed("(float[2,2] x, int64[1,2] i) => (float[1,2,2] y) { y = Gather(x, i) }")
    assert not GatherRowsPass()(model).modified


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"])
def test_a_reduction_names_its_axes(op: str, opset: int) -> None:
    """All of them, where it named none. Oracle: ONNX Runtime's result without axes."""
    model = parsed(f"(float[2,3] x) => (float[1,1] y) {{ y = {op}(x) }}", opset)
    x = np.random.default_rng(0).random((2, 3), np.float32)
    before = run(model, x=x)
    assert ReductionAxesPass()(model).modified
    (node,) = model.graph
    assert list(node.attributes.get_ints("axes", ())) == [0, 1] or len(node.inputs) == 2
    np.testing.assert_array_equal(run(model, x=x), before)


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize(
    "op",
    [
        "Softmax", "LogSoftmax", "Elu", "LeakyRelu", "Selu", "HardSigmoid", "Flatten", "ArgMax",
        "DepthToSpace<blocksize=2>", "MaxPool<kernel_shape=[2,2]>",
        "AveragePool<kernel_shape=[2,2]>", "Transpose", "Gelu",
    ],
)  # fmt: skip
def test_every_default_is_written(op: str, opset: int) -> None:
    """As the schema has it, and nothing changes. Oracles: onnx's schemas, ONNX Runtime."""
    name = op.partition("<")[0]
    if name == "Gelu" and opset < 20:
        pytest.skip("Gelu came with 20")
    model = parsed(f"(float[1,4,4,4] x) => (y) {{ y = {op}(x) }}", opset)
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    before = run(model, x=x)
    assert ExplicitAttributesPass()(model).modified
    defaults = {
        attribute
        for attribute, declared in onnx.defs.get_schema(name, opset).attributes.items()
        if declared.default_value.type
    }
    assert defaults <= set(model.graph[0].attributes)
    np.testing.assert_array_equal(run(model, x=x), before)


def test_shapes_that_prose_defaults_follow_from() -> None:
    """Kernel, strides, dilations and pads of convolutions. Oracles: by hand, ONNX Runtime."""
    weights = ", ".join(["0.5"] * 36)
    model = parsed(
        f"(float[1,2,5,5] x) => (y, z) <float[2,2,3,3] w = {{{weights}}}>"
        ' { y = Conv(x, w) z = ConvTranspose<auto_pad="SAME_UPPER">(x, w) }'
    )
    x = np.random.default_rng(0).random((1, 2, 5, 5), np.float32)
    before = run(model, x=x)
    ExplicitAttributesPass()(model)
    conv, transposed = model.graph
    assert {name: value.value for name, value in conv.attributes.items()} == {
        "auto_pad": "NOTSET",
        "dilations": (1, 1),
        "group": 1,
        "kernel_shape": (3, 3),
        "pads": (0, 0, 0, 0),
        "strides": (1, 1),
    }
    assert "pads" not in transposed.attributes  # auto_pad decides
    for made, wanted in zip(run(model, x=x), before, strict=True):
        np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize(
    ("shape", "value"),
    [("s = {4, 1}", 0), ("s = {2, -1}", 0), ("s = {0, 2}", 1), ("other", 1)],
)
def test_allowzero_is_0_where_no_zero_is(shape: str, value: int) -> None:
    """It tells what a zero means, so it is idle without one. Oracle: onnx's definition."""
    given_shape = "" if shape.startswith("s") else ", int64[2] s"
    model = parsed(
        f"(float[2, 2] x{given_shape}) => (float y)"
        f" <int64[2] {shape}> {{ y = Reshape <allowzero = 1> (x, s) }}"
    )
    ExplicitAttributesPass()(model)
    assert model.graph[0].attributes.get_int("allowzero") == value


def test_subgraphs_are_reached_and_foreign_operators_left() -> None:
    """Nodes in a branch gain defaults; unknown domains are not touched. Oracle: the node kinds."""
    model = parsed(
        """(bool c, float[2] x) => (float y, float z) {
          y = If (c) <
            then_branch = yes () => (float a) { a = Softmax (x) },
            else_branch = no () => (float b) { b = Identity (x) }
          >
          z = my.Softmax (x)
        }"""
    )
    model.graph.opset_imports["my"] = 1
    ExplicitAttributesPass()(model)
    found = [(node.domain, set(node.attributes)) for node in model.graph.all_nodes()]
    assert ("", {"axis"}) in found
    assert ("my", set()) in found


# Before the conversion ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "opset", "kept"),
    [
        ("ReduceMean <keepdims = 1, noop_with_empty_axes = 0>", 17, {"keepdims"}),
        ("ReduceMean <keepdims = 1, noop_with_empty_axes = 0>", 18, None),
        ("ReduceMean <noop_with_empty_axes = 1>", 17, None),  # it means something
        ("Softmax <axis = -1>", 16, None),
        ("Gelu <approximate = \"none\">", 17, None),  # the operator itself is newer
    ],
)  # fmt: skip
def test_what_an_older_set_lacks_goes_at_its_default(
    op: str, opset: int, kept: set[str] | None
) -> None:
    """And nothing else. Oracle: onnx's schemas of both sets."""
    name, _, rest = op.partition(" ")
    text = f"(float[2, 2] x) => (float y) {{ y = {name} {rest} (x) }}"
    model = ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> agraph {text}')
    )
    before = set(model.graph[0].attributes)
    result = NewerAttributesPass(opset)(model)
    assert attributes(model) == {name: before if kept is None else kept}
    assert result.modified == (kept is not None)


@pytest.mark.parametrize(("axis", "sizes"), [(0, (2, 2)), (1, (1, 5)), (-1, (4, 1, 1))], ids=str)
def test_slices_give_what_split_gave(axis: int, sizes: Sequence[int]) -> None:
    """Also where a part is an output of the graph. Oracle: the Split under ONNX Runtime."""
    shape = [4, 6]
    names = [f"y{index}" for index in range(len(sizes))]
    outputs = []
    for name, size in zip(names, sizes, strict=True):
        part = [size if index == axis % 2 else side for index, side in enumerate(shape)]
        outputs.append(f"float{part} {name}")
    numbers = ", ".join(map(str, sizes))
    model = parsed(
        f"(float{shape} x) => ({', '.join(outputs)}) <int64[{len(sizes)}] s = {{{numbers}}}>"
        f" {{ {', '.join(names)} = Split <axis = {axis}> (x, s) }}"
    )
    x = np.random.default_rng(0).random(shape, np.float32)
    expected = run(model, x=x)
    assert SplitToSlicesPass()(model).modified
    assert {node.op_type for node in model.graph} == {"Slice"}
    for made, wanted in zip(run(model, x=x), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)
