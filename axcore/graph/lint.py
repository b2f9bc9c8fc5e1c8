"""Check ONNX graphs against the published operator tables of the chips.

The tables are data (`data/npu_ops.json`, with `npu_ops_errata.json` laid over it). Their
restrictions are short sentences, most of them of a few regular forms; each becomes a `Check`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from ..errors import GraphError, UsageError
from .names import STAGES_KEY

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    import onnx_ir as ir

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One node that the chip's table does not promise to run.

    Attributes:
        file: The linted file; empty for a model in memory.
        node: Name of the node, or of its first output where it has none.
        op: Operator, with its domain where that is not ONNX's own.
        constraint: What the table says.
        severity: "error": a restriction is violated. "warning": the operator is not in the table,
            which the toolchain's front-end may still fold or rewrite, or the file does not tell.
        stage: The stage that the node came from; empty where the file names none.
        detail: The value that was found.
        remedy: What to do.
    """

    file: str
    node: str
    op: str
    constraint: str
    severity: Severity
    stage: str
    detail: str
    remedy: str


def chips() -> list[str]:
    """Return the chip names that `lint_model` accepts."""
    return list(_coverage())


def lint_model(path_or_model: Path | ir.Model, chip: str) -> list[Finding]:
    """Return what the operator table of `chip` says against a model.

    Subgraphs and model-local functions are checked too. Weights are not read.

    Args:
        path_or_model: An ONNX file, with or without external data, or a model in memory.
        chip: One of `chips()`.

    Raises:
        UsageError: The chip has no table.
        GraphError: The file is not a readable ONNX model.
    """
    import onnx_ir as ir

    table = _table(chip)
    file, model = (
        ("", path_or_model) if isinstance(path_or_model, ir.Model) else _load(path_or_model)
    )
    report = _Report(file, _stages(model), [])
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        opset = scope.opset_imports.get("", 0)
        _lint_opset(opset, report)
        for node in ir.traversal.RecursiveGraphIterator(scope):
            if node.op_identifier() not in model.functions:
                _lint_node(_Seen(node, opset), table, chip, report)
    return report.findings


@dataclass(frozen=True)
class _Report:
    file: str
    stages: frozenset[str]
    findings: list[Finding]

    def add(self, seen: _Seen, constraint: str, severity: Severity, detail: str) -> None:
        stage = seen.name.partition("/")[0]
        self.findings.append(
            Finding(
                self.file,
                seen.name,
                seen.op,
                constraint,
                severity,
                stage if stage in self.stages else "",
                detail,
                _remedy(seen.node.op_type, constraint.partition(":")[0]),
            )
        )


def _lint_opset(opset: int, report: _Report) -> None:
    # A scope without ONNX's own domain has only foreign operators, each a finding by itself.
    minimum = _errata()["opset"]["minimum"]
    if 0 < opset < minimum:
        report.findings.append(
            Finding(
                report.file,
                node="",
                op="",
                constraint=f"opset: >= {minimum}",
                severity="error",
                stage="",
                detail=f"opset is {opset}",
                remedy=_remedy("", "opset"),
            )
        )


def _lint_node(seen: _Seen, table: Table, chip: str, report: _Report) -> None:
    if seen.node.op_type not in table:
        report.add(seen, f"not in the operator table of {chip}", "warning", f"operator {seen.op}")
    for text, check in table.get(seen.node.op_type, {}).items():
        try:
            evidence = check(seen)
        except _Unknown as unknown:
            report.add(seen, text, "warning", f"cannot be checked: {unknown}")
        else:
            if evidence:
                report.add(seen, text, "error", evidence)


def _load(path: Path) -> tuple[str, ir.Model]:
    import onnx_ir as ir

    hint = "give an ONNX file that onnx.checker accepts; a damaged one must be exported again"
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf, onnx and onnx_ir share no base class for damaged files
        raise GraphError(f"`{path}` cannot be read as ONNX\n  {error}", hint=hint) from error
    if not model.graph.opset_imports:  # arbitrary bytes, none included, may parse as protobuf
        raise GraphError(f"`{path}` is not an ONNX model\n  it imports no operator set", hint=hint)
    return str(path), model


def _stages(model: ir.Model) -> frozenset[str]:
    return frozenset(json.loads(model.metadata_props.get(STAGES_KEY, "[]")))


# What is known of a node -------------------------------------------------------------------------


class _Unknown(Exception):
    """A restriction cannot be decided from the file; the message says what is missing."""


class _Seen:
    """A node and the ONNX schema it is written in: what the restrictions ask about."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.schema = _schema(node.op_type, node.domain, opset)

    @property
    def name(self) -> str:
        return self.node.name or next((value.name for value in self.node.outputs if value.name), "")

    @property
    def op(self) -> str:
        return f"{self.node.domain}::{self.node.op_type}" if self.node.domain else self.node.op_type

    def written(self, name: str) -> Any:
        """Return an attribute as the node gives it: a number, a string, a list, or None."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return None
        if attribute.is_ref():
            raise _Unknown(f"{name} is set by the caller of the function")
        if name == "to":
            return _dtype_name(attribute.as_int())
        return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value

    def default(self, name: str) -> Any:
        """Return an attribute's default, or None where the schema has none."""
        import onnx

        attribute = self.schema.attributes.get(name) if self.schema else None
        if attribute is None or not attribute.default_value.type:
            return None
        value = onnx.helper.get_attribute_value(attribute.default_value)
        return value.decode() if isinstance(value, bytes) else value

    def value_of(self, name: str) -> Any:
        """Return an attribute as it takes effect: written, or the default."""
        written = self.written(name)
        return self.default(name) if written is None else written

    def input(self, name: str) -> ir.Value | None:
        """Return what is connected to the input that the schema calls `name`."""
        names = [formal.name for formal in self.schema.inputs] if self.schema else []
        index = names.index(name) if name in names else len(self.node.inputs)
        return self.node.inputs[index] if index < len(self.node.inputs) else None


@cache
def _schema(op: str, domain: str, opset: int) -> onnx.defs.OpSchema | None:
    import onnx

    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:  # an operator that ONNX does not know
        return None


def _dtype_name(number: int) -> str:
    import onnx_ir as ir

    try:
        return str(ir.DataType(number).numpy().name)
    except (TypeError, ValueError):  # no number has such a type, or ONNX has none of that number
        return f"ONNX type {number}"


def _shape(value: ir.Value | None) -> list[Any]:
    """Return the dimensions of a value: numbers, or names where they are not static."""
    import onnx_ir as ir

    if value is None:
        raise _Unknown("the input is missing")
    constant = ir.convenience.get_const_tensor(value)
    shape = value.shape if constant is None else constant.shape
    if shape is None:
        raise _Unknown(f"the shape of `{value.name}` is not in the file")
    return [dim if isinstance(dim, int) else str(dim) for dim in shape]


# What a restriction means ------------------------------------------------------------------------

Check = Callable[[_Seen], str]
"""Returns what violates the restriction, with the value found, or the empty string.

Raises `_Unknown` where the file does not tell.
"""
Table = Mapping[str, Mapping[str, Check]]
"""Operator to its restrictions: text to check."""

_VALUE = r'(?:"\w+"|-?[\w.]+)'
_ONLY = re.compile(rf"(\w+): only ({_VALUE}(?:(?:, | or ){_VALUE})*)(?: \([^)]*\))?")
_RANK = re.compile(r"(\w+): only (\d+)-D")
_EXCEPT = re.compile(rf"(\w+): must not be ({_VALUE})")
_REFUSED = re.compile(r"(\w+): not supported(?: yet)?")
_WHERE = re.compile(rf"(\w+) is (not )?({_VALUE})")
_INFORMATION = (
    re.compile(r"note: .*"),
    re.compile(r"\w+: .* all supported"),
    re.compile(r"only for small sizes"),  # no table says how small
)


def parse_restriction(text: str) -> Check:
    """Return what a sentence of the table means.

    Raises:
        ValueError: No form fits, or several do: the data has a sentence that nobody mapped.
    """
    sentence, _, condition = text.partition(" where ")
    checks = [check for form in FORMS if (check := form(sentence))]
    if len(checks) != 1:
        raise ValueError(f"{len(checks)} forms fit the restriction {text!r}")
    return _where(condition, checks[0]) if condition else checks[0]


def _only(sentence: str) -> Check | None:
    """``mode: only "nearest", "linear"``: every element of the attribute is one of the values."""
    if not (match := _ONLY.fullmatch(sentence)):
        return None
    subject, allowed = match[1], [_literal(value) for value in re.split(", | or ", match[2])]

    def check(seen: _Seen) -> str:
        value = seen.value_of(subject)
        if subject == "axis" and isinstance(value, int) and value >= 0:  # allowed: from the end
            value -= len(_shape(seen.node.inputs[0]))
        stray = [item for item in _as_list(value) if not any(_same(item, one) for one in allowed)]
        return f"{subject} is {seen.value_of(subject)}" if stray else ""

    return check


def _rank(sentence: str) -> Check | None:
    """``indices: only 1-D``: the input has that many dimensions."""
    if not (match := _RANK.fullmatch(sentence)):
        return None
    subject, rank = match[1], int(match[2])

    def check(seen: _Seen) -> str:
        shape = _shape(seen.input(subject))
        return "" if len(shape) == rank else f"{subject} has {len(shape)} dimensions: {shape}"

    return check


def _except(sentence: str) -> Check | None:
    """``sampling_ratio: must not be 0``: the attribute, default included, has another value."""
    if not (match := _EXCEPT.fullmatch(sentence)):
        return None
    subject, refused = match[1], _literal(match[2])
    return lambda seen: f"{subject} is {refused}" if seen.value_of(subject) == refused else ""


def _refused(sentence: str) -> Check | None:
    """``clip: not supported``: the attribute is at its default, the input not connected."""
    if not (match := _REFUSED.fullmatch(sentence)):
        return None
    subject = match[1]

    def check(seen: _Seen) -> str:
        if (value := seen.input(subject)) is not None:
            return f"input {subject} is connected to `{value.name}`"
        written = seen.written(subject)
        if written in (None, []) or _same(written, seen.default(subject)):
            return ""
        return f"{subject} is {written}"

    return check


def _prose(sentence: str) -> Check | None:
    """Return the check of a sentence that has no regular form."""
    return _PROSE.get(sentence)


def _information(sentence: str) -> Check | None:
    """Sentences that forbid nothing, or give no figure to hold a node against."""
    if any(form.fullmatch(sentence) for form in _INFORMATION):
        return lambda _: ""
    return None


FORMS = (_only, _rank, _except, _refused, _prose, _information)


def _where(condition: str, check: Check) -> Check:
    """``… where pads is not 0``: the restriction holds only then."""
    match = _WHERE.fullmatch(condition)
    assert match, condition
    subject, negated, value = match[1], bool(match[2]), _literal(match[3])

    def guarded(seen: _Seen) -> str:
        applies = any((item == value) != negated for item in _as_list(seen.value_of(subject)))
        return check(seen) if applies else ""

    return guarded


def _literal(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text.strip('"')


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-6)  # ONNX stores attributes as float32
    return bool(value == other)


def _scalar_exponent(seen: _Seen) -> str:
    import onnx_ir as ir

    exponent = seen.node.inputs[1]
    constant = None if exponent is None else ir.convenience.get_const_tensor(exponent)
    if exponent is not None and constant is None:
        return f"exponent `{exponent.name}` is computed"
    shape = _shape(exponent)
    return "" if math.prod(shape) == 1 else f"exponent has shape {shape}"


def _channel_slope(seen: _Seen) -> str:
    shape, slope = (_shape(value) for value in seen.node.inputs[:2])
    if len(shape) != 4 or slope in ([shape[1]], [1, shape[1], 1, 1]):
        return ""
    return f"input has shape {shape}, slope {slope}"


def _output_padding_within_pads(seen: _Seen) -> str:
    padding = _as_list(seen.written("output_padding"))
    pads = _as_list(seen.written("pads")) or [0] * 2 * len(padding)
    trailing = pads[len(padding) :]
    if all(extra <= pad for extra, pad in zip(padding, trailing, strict=True)):
        return ""
    return f"output_padding is {padding}, trailing pads are {trailing}"


def _default_activations(seen: _Seen) -> str:
    found, default = _as_list(seen.written("activations")), ["Sigmoid", "Tanh", "Tanh"]
    return "" if found == default * (len(found) // 3) else f"activations is {found}"


_PROSE: Mapping[str, Check] = {
    "activations: only Sigmoid, Tanh, Tanh, for every direction": _default_activations,
    "elementwise computation is not supported; exponent must be an initializer and a scalar": (
        _scalar_exponent
    ),
    "4-D input: channel must be dim 1 (second); slope shape only (channel,) or "
    "(1, channel, 1, 1)": _channel_slope,
    "output_padding: output_padding_h <= pads_bottom, output_padding_w <= pads_right": (
        _output_padding_within_pads
    ),
}


# The tables --------------------------------------------------------------------------------------


@cache
def _table(chip: str) -> Table:
    if chip not in (tables := _coverage()):
        raise _no_table(chip)
    aliases = _errata()["aliases"]
    return {
        aliases[op]["name"] if op in aliases else op: {
            text: parse_restriction(text) for text in _amended(op, entry["restrictions"])
        }
        for op, entry in _published()["chips"][tables[chip]].items()
    }


def _coverage() -> dict[str, str]:
    """Return every chip name with the name of its table."""
    tables: dict[str, list[str]] = _published()["applies_to"]
    return {name: table for table, covered in tables.items() for name in (table, *covered)}


def _amended(op: str, restrictions: list[str]) -> Iterator[str]:
    """Yield the restrictions of an operator with the errata applied."""
    errata = _errata()["restrictions"].get(op, {})
    for text in restrictions:
        yield from errata[text]["becomes"] if text in errata else [text]


def _no_table(chip: str) -> UsageError:
    reason = _errata()["no_table"].get(chip, {}).get("reason", "the name is not known")
    return UsageError(
        f"there is no operator table for chip `{chip}`\n  {reason}\n  tables: {', '.join(chips())}",
        hint="choose one of the chips with a table",
    )


def _remedy(op: str, subject: str) -> str:
    remedies = _data("npu_ops_remedies.json")
    keys = (f"{op}.{subject}", f"*.{subject}", op, "*")
    return str(next(remedies[key] for key in keys if key in remedies))


def _published() -> dict[str, Any]:
    return _data("npu_ops.json")


def _errata() -> dict[str, Any]:
    return _data("npu_ops_errata.json")


@cache
def _data(name: str) -> dict[str, Any]:
    text = (resources.files("axcore") / "data" / name).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
