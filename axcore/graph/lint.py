"""Check ONNX graphs against the operator table of a device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ..errors import GraphError
from ..foreign import decode_json
from ..plain import shown
from .names import STAGES_KEY
from .restrictions import Seen, Unknown, parse_restriction

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from .restrictions import Check

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One node that the operator table does not promise to run.

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


@dataclass(frozen=True)
class OperatorTable:
    """The operators that a device runs, and under which restrictions.

    Attributes:
        device: Name of the device, for messages.
        operators: ONNX operator to its restrictions, in the sentences that `parse_restriction`
            reads; none for an operator without restrictions.
        minimum_opset: The oldest ONNX operator set that its compiler reads.
        remedies: What to do, by ``Operator.subject``, ``*.subject``, ``Operator`` or ``*``; the
            first that is there counts, where the subject is what stands before the colon of a
            restriction.
    """

    device: str
    operators: Mapping[str, tuple[str, ...]]
    minimum_opset: int = 1
    remedies: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def checks(self) -> Mapping[str, Mapping[str, Check]]:
        """The restrictions of every operator, parsed.

        Raises:
            ValueError: A sentence is of no known form.
        """
        return {
            op: {text: parse_restriction(text) for text in restrictions}
            for op, restrictions in self.operators.items()
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that a finding depends on."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def remedy(self, op: str, subject: str) -> str:
        """Return what to do about a restriction; empty where nothing is known."""
        keys = (f"{op}.{subject}", f"*.{subject}", op, "*")
        return next((self.remedies[key] for key in keys if key in self.remedies), "")


def lint_model(path_or_model: Path | ir.Model, table: OperatorTable) -> list[Finding]:
    """Return what an operator table says against a model.

    Subgraphs and model-local functions are checked too. Weights are not read.

    Args:
        path_or_model: An ONNX file, with or without external data, or a model in memory.

    Raises:
        GraphError: The file is not a readable ONNX model.
    """
    import onnx_ir as ir

    file, model = (
        ("", path_or_model) if isinstance(path_or_model, ir.Model) else _load(path_or_model)
    )
    report = _Report(file, table, _stages(model), [])
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        opset = scope.opset_imports.get("", 0)
        report.check_opset(opset)
        for node in ir.traversal.RecursiveGraphIterator(scope):
            if node.op_identifier() not in model.functions:
                report.check_node(Seen(node, opset))
    return report.findings


@dataclass(frozen=True)
class _Report:
    file: str
    table: OperatorTable
    stages: frozenset[str]
    findings: list[Finding]

    def check_opset(self, opset: int) -> None:
        # A scope without ONNX's own domain has only foreign operators, each a finding by itself.
        minimum = self.table.minimum_opset
        if 0 < opset < minimum:
            self._add("", "", f"opset: >= {minimum}", "error", f"opset is {opset}")

    def check_node(self, seen: Seen) -> None:
        op, where = seen.node.op_type, (seen.name, seen.op)
        if op not in self.table.checks:
            constraint = f"not in the operator table of {self.table.device}"
            self._add(*where, constraint, "warning", f"operator {seen.op}")
        for text, check in self.table.checks.get(op, {}).items():
            try:
                evidence = check(seen)
            except Unknown as unknown:
                self._add(*where, text, "warning", f"cannot be checked: {unknown}")
            else:
                if evidence:
                    self._add(*where, text, "error", evidence)

    def _add(self, node: str, op: str, constraint: str, severity: Severity, detail: str) -> None:
        stage = node.partition("/")[0]
        remedy = self.table.remedy(op.rpartition("::")[2], constraint.partition(":")[0])
        known = stage if stage in self.stages else ""
        self.findings.append(
            Finding(self.file, node, op, constraint, severity, known, detail, remedy)
        )


def _load(path: Path) -> tuple[str, ir.Model]:
    import onnx_ir as ir

    hint = "give an ONNX file that onnx.checker accepts; a damaged one must be exported again"
    try:
        model = ir.load(path)
        _check_text(model)
    except Exception as error:  # protobuf, onnx and onnx_ir share no base class for damaged files
        raise GraphError(f"`{path}` cannot be read as ONNX\n  {error}", hint=hint) from error
    if not model.graph.opset_imports:  # arbitrary bytes, none included, may parse as protobuf
        raise GraphError(f"`{path}` is not an ONNX model\n  it imports no operator set", hint=hint)
    return str(path), model


def _check_text(model: ir.Model) -> None:
    """Refuse names that are no UTF-8: protobuf hands them on as bytes."""
    import onnx_ir as ir

    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        for node in ir.traversal.RecursiveGraphIterator(scope):
            for text in (node.name or "", node.op_type, node.domain):
                if not isinstance(text, str):
                    raise ValueError(f"a name in it is not UTF-8: {shown(text)}")


def _stages(model: ir.Model) -> frozenset[str]:
    """Return the stages that axcore noted in a graph; none where somebody else wrote there."""
    try:
        listed = decode_json(model.metadata_props.get(STAGES_KEY, "[]"))
    except ValueError:
        return frozenset()
    names = listed if isinstance(listed, list) else []
    return frozenset(name for name in names if isinstance(name, str))
