"""What real builds showed: each rule tells good from bad, and holds against the recorded facts."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, get_args

import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from axcore.graph.lint import Confidence, OperatorTable, Rule, Severity, lint_model
from axcore.graph.observations import GRAPH, GRAPH_CHECKS, OPERATOR
from axcore.graph.restrictions import FORMS, parse_restriction
from axcore.toolchains.pulsar2.chips import chip_target

DATA = resources.files("axcore.toolchains.pulsar2") / "data"
RULES = json.loads((DATA / "observed.json").read_text())["rules"]
CONFIDENCE = json.loads((DATA / "observed.json").read_text())["confidence"]
TABLE = chip_target("AX650").operators
assert TABLE is not None

INPUTS = (
    "float[2,3,4,4] x, float[4,4] m, float[4] v, int32[2,4] ints, float e, "
    "float[1,4] row, bfloat16[4] brain, int64[2] sizes, int8[4,4] bytes, float[4,3,3,3] w, "
    "float[3,4,3,3] w4"
)
CONSTANTS = (
    "float[4,4] C = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4] V = {1,2,3,4}, "
    "float[1,4] ROW = {1,2,3,4}, float ONE = {1}, float TWO = {2}, int64[2] SHAPE = {8, 12}, "
    "float CUBE = {3}, float NEGATIVE = {-0.5}, float ROOT = {0.5}, int64[1] FIRST = {0}, "
    "int64[1] K = {2}, int64[1] AXIS = {-1}, "
    "float[4,3,3,3] KERNEL = {" + ", ".join(["1"] * 108) + "}"
)


def model_of(body: str, opset: int = 18) -> ir.Model:
    """Return a model with `INPUTS` and `CONSTANTS`, shapes inferred."""
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": {opset}, "my": 1]> '
        f"g ({INPUTS}) => (y) <{CONSTANTS}> {{ {body} }}"
    )
    common.ShapeInferencePass()(model)
    return model


# A rule's sentence, a node, what may stand at its `?`, and what may not. Oracle: the sources that
# observed.json names.
PAIRS = {
    "alpha: must be written": ("y = Elu?(m)", "<alpha=1.0>", ""),
    "largest, sorted: must be written": (
        "y, i = TopK<?sorted=1>(m, K)", "largest=1, ", "",
    ),
    "dilations, group, kernel_shape, pads, strides: must be written": (
        "y = ConvTranspose?(x, w4)",
        "<dilations=[1,1], group=1, kernel_shape=[3,3], pads=[0,0,0,0], strides=[1,1]>",
        "<strides=[1,1]>",
    ),
    "axis: must be written": ("y = Softmax?(m)", "<axis=-1>", ""),
    "alpha, beta: must be written": ("y = Gemm<alpha=1.0?>(m, C)", ", beta=1.0", ""),
    "keepdims: must be written": ("y = ReduceMean?(x, AXIS)", "<keepdims=1>", ""),
    "axes: must be given": ("y = ReduceMean<keepdims=1>(x?)", ", AXIS", ""),
    "constant Y: only 0.25, 0.5, 2 or 4": ("y = Pow(m, ?)", "TWO", "CUBE"),
    "B: must be constant": ("y = Gemm<alpha=1.0, beta=1.0>(m, ?, V)", "C", "m"),
    "W: must be constant": ("s = Cast<to=1>(w) y = Conv(x, ?)", "KERNEL", "s"),
    "vector: must not be added to a product of computed matrices": (
        "s = MatMul(m, m) y = Add(s, ?)", "ROW", "V",
    ),
    "result: at least 2-D": ("y = Mul(?)", "m, row", "v, v"),
    "inputs: at least 1-D": ("y = Concat<axis=0>(?)", "v, v", "e, v"),
    "A: must not be all 1 at an output of the graph": ("y = Mul(?)", "m, m", "ONE, ONE"),
    "B: must not be all 1 at an output of the graph": ("y = Div(m, ?)", "TWO", "ONE"),
    "pads: equal at both ends where dilations is not 1": (
        "y = Conv<dilations=[2,2], pads=[?]>(x, KERNEL)", "1,1,1,1", "2,2,0,0",
    ),
    "input: must not be of type int32": ("c = Clip(?) y = Cast<to=1>(c)", "m", "ints"),
    "shape: must be constant": ("y = Reshape(x, ?)", "SHAPE", "sizes"),
    "A: must not be the only constant": ("y = Mul(?)", "m, ROW", "ROW, m"),
    "B: must not come from DequantizeLinear": (
        "q = ? y = MatMul(m, q)", "Cast<to=1>(bytes)", "DequantizeLinear(bytes, ONE)",
    ),
    "input: must not be of type bfloat16": ("y = Cast<to=1>(?)", "ints", "brain"),
}  # fmt: skip


@pytest.mark.parametrize(("constraint", "pair"), PAIRS.items(), ids=PAIRS)
def test_a_rule_tells_good_from_bad(constraint: str, pair: tuple[str, str, str]) -> None:
    """One node that builds and one that does not. Oracle: the source of the rule."""
    node, good, bad = pair
    fine, wrong = (
        {finding.constraint for finding in lint_model(model_of(node.replace("?", form)), TABLE)}
        for form in (good, bad)
    )
    assert constraint not in fine
    assert constraint in wrong


# Nodes that were built alone or in a model, and what became of them, with the source. `error` and
# `warning` are of our making: whether the build failed, or only may.
FACTS = [
    ("y = Pow(m, NEGATIVE)", "error", "Magnetar ZipVoice [013]: TileFailException"),
    ("y = Pow(m, ROOT)", "", "Zipformer notes: 0.25, 0.5, 2 and 4 are taken"),
    ("y = Reciprocal(m)", "error", "Magnetar ZipVoice [014]"),
    ("y = Gemm<alpha=0.5, beta=1.0>(m, C)", "error", "onnxsim README: KeyError, AxQuantizedGemm"),
    ("y = Gemm<alpha=1.0, beta=1.0>(m, C)", "", "onnxsim README: explicit 1.0 builds"),
    ("y = LRN<size=3>(x)", "error", "onnxsim README: KeyError at parse"),
    ("b = IsNaN(m) y = Cast<to=1>(b)", "error", "Magnetar 001_vit_small"),
    ("y = Neg(m)", "", "onnxsim README: builds although unlisted"),
    ("y = RMSNormalization(m, V)", "", "onnxsim README: builds as a raw node, opset 23"),
    ("y = Swish(m)", "error", "onnxsim README: single node fails, opset 24"),
    ("y = Mod<fmod=1>(m, m)", "error", "Magnetar yolo_quantization_and_compile"),
    ("y = Squeeze(row, FIRST)", "error", "onnxsim README: ZeroDivisionError in the scheduler"),
    ("y = LeakyRelu<alpha=0.01>(m)", "warning", "Piper u16 notes: 16 bits overflow, eight builds"),
    ("y = Log(m)", "warning", "ZipVoice [012] fails in 5.1, onnxsim README builds in 7.0-lite"),
    ("y = CumSum<exclusive=0, reverse=0>(m, e)", "", "the newer table of AX650"),
    ('y = DepthToSpace<blocksize=1, mode="CRD">(x)', "", "the newer table of AX650"),
    ("y = Softmax<axis=-1>(m)", "", "every published vision-language model"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "severity", "source"), FACTS, ids=[node for node, *_ in FACTS])
def test_recorded_builds(node: str, severity: str, source: str) -> None:
    """What became of a node in a real build. Oracle: `source`, who saw it."""
    assert source
    opset = {"RMSNormalization": 23, "Swish": 24}.get(node.split()[2].partition("(")[0], 18)
    findings = lint_model(model_of(node, opset), TABLE)
    made = {finding.severity for finding in findings if finding.op != "Cast"}
    assert made == ({severity} if severity else set())
    assert all(finding.source for finding in findings)


def test_names_and_types_of_graph_inputs() -> None:
    """A slash in a name, and float16: one finding each, which names the tensor."""
    body = (
        '<ir_version: 8, opset_import: ["": 18]> '
        "g (float16[4,4] a) => (float16[4,4] y) { y = Relu(a) }"
    )
    model = ir.from_onnx_text(body)
    model.graph.outputs[0].name = "out/y"
    found = {(f.node, f.detail, f.op) for f in lint_model(model, TABLE)}
    assert found == {
        ("a", "input is float16", ""),
        ("out/y", "output is called `out/y`", ""),
    }


def test_a_finding_names_source_confidence_and_consequence() -> None:
    """Every field that the data has arrives, the version in the source. Oracle: the data."""
    (finding,) = lint_model(model_of("y = Pow(m, CUBE)"), TABLE)
    (rule,) = (rule for rule in RULES if rule["operators"] == ["Pow"])
    assert (finding.consequence, finding.confidence) == (rule["consequence"], rule["confidence"])
    assert finding.source == f"{rule['source']} (Pulsar2 {rule['versions']})"
    assert finding.remedy == rule["remedy"]


def test_an_observation_that_the_file_does_not_decide_is_passed_over() -> None:
    """A table's restriction is doubted aloud, an observation is not: most graphs are none."""
    rule = Rule(("Add",), "result: at least 2-D", "error", "", "build", "somebody")
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 18]> g (float[4] a) => (b) { c = Abs(a) b = Add(c, c) }'
    )
    model.graph.outputs[0].shape = None
    assert lint_model(model, OperatorTable("Toy", {"Abs": (), "Add": ()}, rules=(rule,))) == []


def test_an_unknown_sentence_about_graphs_is_refused() -> None:
    """A toolchain's data must not be passed over in silence."""
    rule = Rule((GRAPH,), "outputs: in moderation", "error", "", "build", "somebody")
    with pytest.raises(ValueError, match="outputs: in moderation"):
        lint_model(model_of("y = Abs(m)"), OperatorTable("Toy", {"Abs": ()}, rules=(rule,)))


# The data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: " ".join(rule["operators"]))
def test_every_rule_is_read_and_names_its_source(rule: dict[str, Any]) -> None:
    """One form fits each sentence; severity and confidence are known; operators are ONNX's."""
    sentence = rule["constraint"].partition(" where ")[0]
    if rule["operators"] == [GRAPH]:
        assert rule["constraint"] in GRAPH_CHECKS
    else:
        assert sum(form(sentence) is not None for form in FORMS) == 1
        assert callable(parse_restriction(rule["constraint"]))
    assert rule["severity"] in get_args(Severity)
    assert rule["confidence"] in get_args(Confidence)
    assert rule["source"]
    assert rule["consequence"] or rule["constraint"].startswith("note: ")
    listed = {*TABLE.operators, GRAPH}
    assert all(op in listed or onnx.defs.has(op) for op in rule["operators"])


def test_every_confidence_is_explained() -> None:
    """The file and the type list the same words."""
    assert set(CONFIDENCE) == set(get_args(Confidence))


def test_every_sentence_but_notes_is_tried() -> None:
    """No rule without an example of what it forbids. Oracle: the data."""
    tried = {*PAIRS, *GRAPH_CHECKS, "alpha: only 1.0", "beta: only 1.0"}
    sentences = {rule["constraint"] for rule in RULES}
    assert {s for s in sentences if not s.startswith(("note: ", OPERATOR))} <= tried
