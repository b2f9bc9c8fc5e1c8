"""The operator lint: each kind of restriction, where findings come from, and the data behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore.errors import GraphError
from axcore.graph.lint import OperatorTable, lint_model
from axcore.graph.restrictions import FORMS, parse_restriction
from axcore.toolchains.pulsar2.chips import NPU_MODES, chip_target

if TYPE_CHECKING:
    from pathlib import Path

    from axcore.graph.lint import Finding

DATA = resources.files("axcore.toolchains.pulsar2") / "data"
PUBLISHED, ERRATA, REMEDIES = (
    json.loads((DATA / f"{name}.json").read_text()) for name in ("operators", "errata", "remedies")
)
COVERED = {*PUBLISHED["chips"], *(c for cs in PUBLISHED["applies_to"].values() for c in cs)}

INPUTS = (
    "float[1,4,6,6] x, float[2,3,8] s, int64[3] one_d, int64[1,3] two_d, float[4,4] m, "
    "float[4,4,3,3] w, float[4] v, float[4,1,1] slope, float[1,4,1,1] slope4, float e, "
    "int64[8] pads, int64[1] axes, float[1,16,8] lw, int32[3] lengths, float[5,4] rois, "
    "int64[5] batches, float[1,12,4] peep, float[n,m] open"
)


def text_model(body: str, opset: int = 17, initializers: str = "") -> ir.Model:
    constants = f"<{initializers}>" if initializers else ""
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> '
        f"g ({INPUTS}) => (float y) {constants} {{ {body} }}"
    )


def table_of(chip: str) -> OperatorTable:
    table = chip_target(chip).operators
    assert table is not None
    return table


AX650 = table_of("AX650")
TABLE = replace(AX650, rules=())
"""The published table by itself."""


def found(body: str, table: OperatorTable = TABLE, **model: Any) -> list[Finding]:
    return lint_model(text_model(body, **model), table)


# A node, what may stand at its `?`, and what may not.
PAIRS = {
    "only, string": ('y = Conv<auto_pad="?">(x, w)', "NOTSET", "SAME_UPPER"),
    "only, one of": ('y = Resize<mode="?">(x, , v)', "linear", "cubic"),
    "only, default violates": (
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]?>(x)", ", count_include_pad=1", "",
    ),
    "only, without effect": ("y = AveragePool<kernel_shape=[3,3]?>(x)", "", ", pads=[0,0,0,1]"),
    "only, in a mode": (
        'y = Resize<mode="?", nearest_mode="floor">(x, , v)', "linear", "nearest",
    ),
    "only, every element": ("y = MaxPool<kernel_shape=[2,2], dilations=[1,?]>(x)", "1", "2"),
    "only, number": ("y = LpNormalization<p=?>(x)", "1", "3"),
    "only, alpha": ("y = Gemm<alpha=?>(m, m)", "1.0", "0.5"),
    "only, beta": ("y = Gemm<beta=?>(m, m, v)", "1.0", "2.0"),
    "rank": ("y = Gather(x, ?)", "one_d", "two_d"),
    "rank of a scalar": ("y = Gather(x, ?)", "one_d", "e"),
    "must not be, default violates": (
        "y = RoiAlign?(x, rois, batches)", "<sampling_ratio=2>", "",
    ),
    "not supported, written default": (
        "y = BatchNormalization<momentum=?>(x, v, v, v, v)", "0.9", "0.1",
    ),
    "not supported, no default": ("y = LSTM<hidden_size=4?>(s, lw, lw)", "", ", clip=1.0"),
    "not supported, input": ("y = LSTM<hidden_size=4>(s, lw, lw, , ?)", ", ", "lengths"),
    "not supported, last input": ("y = LSTM<hidden_size=4>(s, lw, lw?)", "", ", , , , , peep"),
    "LSTM activations": (
        "y = LSTM<hidden_size=4, activations=[?]>(s, lw, lw)",
        '"Sigmoid","Tanh","Tanh"', '"Tanh","Sigmoid","Tanh"',
    ),
    "output padding": (
        "y = ConvTranspose<pads=[?], output_padding=[1,1]>(x, w)", "0,0,1,1", "1,1,0,1",
    ),
    "output padding without pads": ("y = ConvTranspose<output_padding=[?]>(x, w)", "0,0", "1,0"),
    "slope": ("y = PRelu(x, ?)", "slope4", "slope"),
    "slope below four dimensions": ("y = PRelu(?, slope)", "s", "x"),
    "exponent from a Constant": (
        "two = ? y = Pow(x, two)", "Constant<value_float=2.0>()", "Abs(e)",
    ),
    "exponent of one element": (
        "two = Constant<value_floats=[?]>() y = Pow(x, two)", "2.0", "2.0, 2.0, 2.0, 2.0, 2.0, 2.0",
    ),
    "operator absent": ("y = ?", "Sub(x, e)", "Tan(x)"),
    "alias": ("?", "values, y = TopK(x, axes)", "y = NonZero(x)"),
    "foreign domain": ("y = com.microsoft.?(x)", "Gelu", "FusedConv"),
}  # fmt: skip


@pytest.mark.parametrize(("node", "good", "bad"), PAIRS.values(), ids=PAIRS)
def test_a_restriction_tells_good_from_bad(node: str, good: str, bad: str) -> None:
    """One node that a restriction allows and one that it forbids. Oracle: the published table."""
    assert found(node.replace("?", good)) == []
    assert len(found(node.replace("?", bad))) == 1


def test_a_later_operator_set_brings_the_input() -> None:
    """Pad has its axes input from opset 18 on. Oracle: ONNX's schema."""
    assert found("y = Pad(x, pads)", opset=18) == []
    assert [finding.constraint for finding in found("y = Pad(x, pads, , axes)", opset=18)] == [
        "axes: not supported yet"
    ]


def test_defaults_compare_at_the_precision_of_the_file() -> None:
    """0.9 is the default, as a Python number in memory and as the float32 that a file holds."""
    model = text_model("y = BatchNormalization(x, v, v, v, v)")
    model.graph[0].attributes.add(ir.AttrFloat32("momentum", 0.9))
    assert lint_model(model, TABLE) == []


def test_a_finding_says_what_where_and_what_to_do() -> None:
    """Every field of a finding, on one forbidden cast."""
    model = text_model("y = Cast<to=7>(x)")
    model.graph[0].name = "blocks.1/node_cast"
    model.metadata_props["axcore.stages"] = '["patch_embed", "blocks.1"]'
    (finding,) = lint_model(model, table_of("M76H"))
    assert (finding.node, finding.op, finding.stage) == ("blocks.1/node_cast", "Cast", "blocks.1")
    assert (finding.file, finding.severity, finding.detail) == ("", "error", "to is int64")
    assert finding.constraint.startswith("to: only uint8, ")
    assert finding.remedy == REMEDIES["Cast"]


def test_only_a_listed_name_is_a_stage() -> None:
    """A node's first name is a stage only where the model lists it; oracle: written out."""
    model = text_model("y = Tan(x)")
    model.graph[0].name = "blocks.1/neg"
    assert [finding.stage for finding in lint_model(model, TABLE)] == [""]
    model.metadata_props["axcore.stages"] = '["blocks.10"]'
    assert [finding.stage for finding in lint_model(model, TABLE)] == [""]


def test_absence_is_a_warning_and_depends_on_the_chip() -> None:
    """Neg is listed but for AX620E. Oracle: the notes of the published tables, the newer page."""
    warned = {chip for chip in COVERED if found("y = Neg(x)", table_of(chip))}
    assert warned == {"AX620E", "AX630C", "AX620Q"}
    assert [finding.severity for finding in found("y = Tan(x)")] == ["warning"]


def test_a_nameless_node_is_called_by_its_output() -> None:
    """Nodes need no name in ONNX; their outputs have one."""
    assert [finding.node for finding in found("tan = Tan(x) y = Abs(tan)")] == ["tan"]


def test_an_undecidable_restriction_is_a_warning() -> None:
    """Without the input's rank in the file, axis 1 may be the last: said, not decided."""
    (finding,) = found("z = Abs(x) y = LayerNormalization<axis=1>(z, v)")
    assert finding.severity == "warning"
    assert finding.detail == "cannot be checked: the shape of `z` is not in the file"


def test_symbolic_dimensions_still_have_a_rank() -> None:
    """The last axis is told by the number of dimensions, whatever their sizes."""
    assert found("y = LayerNormalization<axis=1>(open, v)") == []


def test_an_initializer_is_a_constant_exponent() -> None:
    """Initializers serve as constants, and their shapes are known."""
    assert found("y = Pow(x, two)", initializers="float two = {2}") == []
    pair = "int64[1,2] pair = {0, 1}"
    assert [f.detail for f in found("y = Gather(x, pair)", initializers=pair)] == [
        "indices has 2 dimensions: [1, 2]"
    ]


def test_nodes_in_subgraphs_are_linted() -> None:
    """The branches of an If are part of the model."""
    branch = "{name} () => (float {name}_out) {{ {name}_out = Tan(x) }}"
    then, other = branch.format(name="then"), branch.format(name="other")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float x, bool c) => (float y) '
        f"{{ y = If (c) <then_branch = {then}, else_branch = {other}> }}"
    )
    ops = [finding.op for finding in lint_model(ir.from_proto(model), AX650)]
    assert ops == ["If", "Tan", "Tan"]


def test_functions_are_linted_and_calling_one_is_no_finding() -> None:
    """A model-local function stands for its body; a parameter leaves a restriction open."""
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[4,4] x) => (float[4,4] y) { y = local.turn<factor=2.0>(x) }
        <domain: "local", opset_import: ["": 17]>
        turn <factor> (a) => (b) { n = Tan(a)  b = Gemm<alpha: float = @factor>(n, n) }
    """)
    findings = lint_model(model, TABLE)
    assert [(f.op, f.severity) for f in findings] == [("Tan", "warning"), ("Gemm", "warning")]
    assert "alpha is set by the caller" in findings[1].detail


@given(st.integers(1, 20))
def test_an_old_operator_set_is_an_error(opset: int) -> None:
    """The tables hold from opset 11 on; one finding, whatever the nodes are."""
    findings = [f for f in found("y = Relu(x)", opset=opset) if f.op == ""]
    assert [f.detail for f in findings] == ([f"opset is {opset}"] if opset < 11 else [])


@given(st.integers(-4, 3), st.integers(1, 4))
def test_the_last_axis_counts_from_either_end(axis: int, rank: int) -> None:
    """An axis is the last one when it lands there as a numpy axis does."""
    shape = ",".join("5" * rank)
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (float[{shape}] a, float[5] b) => (float y) "
        f"{{ y = LayerNormalization<axis={axis}>(a, b) }}"
    )
    is_last = -rank <= axis < rank and range(rank)[axis] == rank - 1
    assert (lint_model(model, TABLE) == []) == is_last


@given(st.sampled_from(ir.DataType))
def test_cast_targets_follow_the_table(dtype: ir.DataType) -> None:
    """Every ONNX type is allowed exactly when the table names it; oracle: the table's text."""
    restriction = PUBLISHED["chips"]["AX650"]["Cast"]["restrictions"][0]
    listed = restriction.removeprefix("to: only ").split(", ")
    spelled = {"float": "float32", "double": "float64"}.get(name := dtype.name.lower(), name)
    assert (found(f"y = Cast<to={dtype.value}>(x)") == []) == (spelled in listed)


def test_external_data_is_not_read(tmp_path: Path) -> None:
    """A model lints although the file that holds its weights is gone; findings name the other."""
    path = tmp_path / "model.onnx"
    body = "z = MatMul(x, big) y = Tan(z)"
    model = text_model(body, initializers="float[2,2] big = {1, 2, 3, 4}")
    model.graph.initializers["big"].const_value = ir.tensor(np.ones((64, 64), np.float32))
    ir.save(model, path, external_data="model.onnx.data")
    (tmp_path / "model.onnx.data").unlink()
    assert [(finding.op, finding.file) for finding in lint_model(path, TABLE)] == [
        ("Tan", str(path))
    ]


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", b"\x08\x07", None])
def test_an_unreadable_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Empty, foreign, truncated and missing files: one error that names the file."""
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError, match=r"model\.onnx` ") as refusal:
        lint_model(path, TABLE)
    assert refusal.value.hint


def test_every_published_chip_has_its_table_and_no_other() -> None:
    """A table names the chips that it covers. Oracle: the published data, and one such chip."""
    assert all(chip_target(chip).operators for chip in COVERED)
    assert {chip for chip in NPU_MODES if chip_target(chip).operators is None} == {"AX8860"}
    ax630c, ax620e = table_of("AX630C"), table_of("AX620E")
    assert (ax630c.device, ax630c.operators) == ("AX630C", ax620e.operators)


TOY = OperatorTable("Toy", {"Tan": (), "Gather": ("indices: only 1-D",)}, 13, {"*": "fold"})


@pytest.mark.parametrize(
    "change",
    [
        {"device": "Joy"},
        {"operators": {"Tan": ()}},
        {"operators": {**TOY.operators, "Gather": ("indices: only 2-D",)}},
        {"minimum_opset": 14},
        {"remedies": {}},
    ],
)
def test_whatever_a_finding_depends_on_is_in_the_digest(change: dict[str, Any]) -> None:
    """Another table is linted with again. Oracle: findings that differ, and an equal table."""
    body, other = "n = Tan(x) y = Gather(n, two_d) z = Abs(y)", replace(TOY, **change)
    old = TOY.minimum_opset
    assert found(body, TOY, opset=old) != found(body, other, opset=old)
    assert other.digest != TOY.digest
    assert replace(TOY).digest == TOY.digest


# The data ----------------------------------------------------------------------------------------

TEXTS = {
    (op, text)
    for table in PUBLISHED["chips"].values()
    for op, entry in table.items()
    for text in entry["restrictions"]
}
AMENDED = {
    (op, text)
    for op, original in TEXTS
    for text in ERRATA["restrictions"].get(op, {}).get(original, {"becomes": [original]})["becomes"]
}


@pytest.mark.parametrize(("op", "text"), sorted(AMENDED))
def test_every_restriction_has_one_meaning(op: str, text: str) -> None:
    """Each sentence of each chip, errata applied, is read by exactly one form."""
    sentence = text.partition(" where ")[0]
    assert sum(form(sentence) is not None for form in FORMS) == 1
    assert callable(parse_restriction(text))


def test_a_sentence_that_nobody_mapped_is_refused() -> None:
    """New data must not be passed over in silence."""
    with pytest.raises(ValueError, match="0 forms fit"):
        parse_restriction("kernel_shape: preferably small")


def test_every_entry_is_supported() -> None:
    """Being listed means being supported: the lint relies on it."""
    assert all(e["supported"] for table in PUBLISHED["chips"].values() for e in table.values())


def test_errata_touch_what_is_published_and_say_why() -> None:
    """Every erratum overlays a sentence or name that is there, with a reason."""
    errata = [
        (op, text, entry)
        for op, entries in ERRATA["restrictions"].items()
        for text, entry in entries.items()
    ]
    assert {(op, text) for op, text, _ in errata} <= TEXTS
    assert all(entry["reason"] and entry["becomes"] for _, _, entry in errata)
    listed = {op for table in PUBLISHED["chips"].values() for op in table}
    assert set(ERRATA["aliases"]) <= listed
    assert all(onnx.defs.has(alias["name"]) for alias in ERRATA["aliases"].values())


def test_remedies_belong_to_operators_or_their_attributes() -> None:
    """No remedy is out of reach: its operator is ONNX's or listed."""
    listed = {op for table in PUBLISHED["chips"].values() for op in table}
    ops = {key.partition(".")[0] for key in REMEDIES} - {"*"}
    assert all(op in listed or onnx.defs.has(op) for op in ops)
