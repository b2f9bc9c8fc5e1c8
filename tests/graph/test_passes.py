"""Passes leave a graph's meaning alone. Oracles: onnx's schemas and ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.defs
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from axcore.graph.passes import DefaultAttributesPass, SplitToSlicesPass

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD = '<ir_version: 9, opset_import: ["" : 18]>\nagraph '


def parsed(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def attributes(model: ir.Model) -> dict[str, set[str]]:
    return {node.op_type: set(node.attributes) for node in model.graph.all_nodes()}


@pytest.mark.parametrize(
    ("op", "given", "kept"),
    [
        ("Softmax <axis = -1>", {"axis"}, set()),
        ("Softmax <axis = 0>", {"axis"}, {"axis"}),
        ("ReduceMean <keepdims = 1, noop_with_empty_axes = 0>", {"keepdims"}, set()),
        ("ReduceMean <keepdims = 0, noop_with_empty_axes = 0>", {"keepdims"}, {"keepdims"}),
        ("Elu <alpha = 1.0>", {"alpha"}, set()),
        ("Elu <alpha = 0.5>", {"alpha"}, {"alpha"}),
        ("LeakyRelu <alpha = 0.01>", {"alpha"}, set()),
        ("Transpose <perm = [1, 0]>", {"perm"}, {"perm"}),  # has no default in the schema
        ("DepthToSpace <blocksize = 1>", {"blocksize"}, {"blocksize"}),  # required
    ],
)
def test_what_equals_the_default_goes_and_nothing_else(
    op: str, given: set[str], kept: set[str]
) -> None:
    """Explicit defaults are removed. Oracle: the defaults that onnx declares."""
    name, _, rest = op.partition(" ")
    model = parsed(f"(float[2, 2] x) => (float y) {{ y = {name} {rest} (x) }}")
    schema = onnx.defs.get_schema(name, 18)
    before = dict(model.graph[0].attributes)
    result = DefaultAttributesPass()(model)
    assert given <= set(before)
    assert attributes(model) == {name: kept}
    for attribute in set(before) - kept:
        default = onnx.helper.get_attribute_value(schema.attributes[attribute].default_value)
        assert before[attribute].value == default
    assert result.modified == bool(set(before) - kept)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ("s = {4, 1}", set()),
        ("s = {2, -1}", set()),
        ("s = {0, 2}", {"allowzero"}),
        ("other", {"allowzero"}),  # only the input tells, and may tell a zero
    ],
)
def test_allowzero_goes_where_no_zero_is(shape: str, kept: set[str]) -> None:
    """`allowzero` tells what a zero means, so it is idle without one. Oracle: onnx's definition."""
    given = "" if shape.startswith("s") else ", int64[2] s"
    model = parsed(
        f"(float[2, 2] x{given}) => (float y)"
        f" <int64[2] {shape}> {{ y = Reshape <allowzero = 1> (x, s) }}"
    )
    DefaultAttributesPass()(model)
    assert attributes(model) == {"Reshape": kept}


def test_subgraphs_are_reached_and_foreign_operators_left() -> None:
    """Nodes in a branch lose defaults; unknown domains are not touched. Oracle: the node kinds."""
    model = parsed(
        """(bool c, float[2] x) => (float y, float z) {
          y = If (c) <
            then_branch = yes () => (float a) { a = Softmax <axis = -1> (x) },
            else_branch = no () => (float b) { b = Identity (x) }
          >
          z = my.Softmax <axis = -1> (x)
        }"""
    )
    model.graph.opset_imports["my"] = 1
    DefaultAttributesPass()(model)
    found = [(node.domain, set(node.attributes)) for node in model.graph.all_nodes()]
    assert ("", set()) in found
    assert ("my", {"axis"}) in found


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
    expected = _run(model, x)
    assert SplitToSlicesPass()(model).modified
    assert {node.op_type for node in model.graph} == {"Slice"}
    for made, wanted in zip(_run(model, x), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)


def _run(model: ir.Model, x: np.ndarray[Any, Any]) -> list[Any]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, {"x": x})
    return results
