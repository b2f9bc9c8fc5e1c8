"""Check ONNX graphs against the operator table of a device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ..errors import GraphError
from ..foreign import decode_json
from ..plain import shown
from .names import STAGES_KEY
from .observations import GRAPH, GRAPH_CHECKS, OPERATOR
from .restrictions import parse_restriction
from .seen import Seen, Unknown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx_ir as ir

    from .observations import GraphCheck
    from .seen import Check

Severity = Literal["error", "warning"]
Confidence = Literal["device", "build", "simulator", "documentation", "inferred"]
"""How a restriction is known: seen on a device, in a real build or in the vendor's simulator,
documented, or concluded from these."""


@dataclass(frozen=True)
class Finding:
    """One node that the operator table does not promise to run, or that was seen to fail.

    Attributes:
        file: The linted file; empty for a model in memory.
        node: Name of the node, or of its first output where it has none.
        op: Operator, with its domain where that is not ONNX's own.
        constraint: What the table says, or a rule of what was observed.
        severity: "error": a restriction is violated. "warning": the operator is not in the table,
            which the toolchain's front-end may still fold or rewrite, or the file does not tell, or
            the build need not fail.
        stage: The stage that the node came from; empty where the file names none.
        detail: The value that was found.
        remedy: What to do.
        consequence: What happens otherwise; empty where no source says.
        confidence: How that is known.
        source: Who says so.
    """

    file: str
    node: str
    op: str
    constraint: str
    severity: Severity
    stage: str
    detail: str
    remedy: str
    consequence: str = ""
    confidence: Confidence = "documentation"
    source: str = ""


@dataclass(frozen=True)
class Rule:
    """What is known of operators beyond their table.

    Attributes:
        operators: ONNX operators; "graph" for rules about a graph's inputs and outputs.
        constraint: A sentence that `parse_restriction` reads. With one of the operator's
            restrictions, the rule takes its place.
        severity, consequence, confidence, source: See `Finding`.
        remedy: What to do; empty for what `OperatorTable.remedies` says.
    """

    operators: tuple[str, ...]
    constraint: str
    severity: Severity
    consequence: str
    confidence: Confidence
    source: str
    remedy: str = ""


MALFORMED = Rule(
    operators=(),
    constraint="inputs: as many as the operator takes",
    severity="error",
    consequence="no tool reads the graph",
    confidence="documentation",
    source="ONNX",
    remedy="export it again",
)
"""What is said of a node that ONNX itself does not allow."""


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
        source: Where the table is published.
        rules: What is known beside it.
    """

    device: str
    operators: Mapping[str, tuple[str, ...]]
    minimum_opset: int = 1
    remedies: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    rules: tuple[Rule, ...] = ()

    @cached_property
    def checks(self) -> Mapping[str, Sequence[tuple[Rule, Check]]]:
        """Restrictions and rules of every operator, parsed.

        Raises:
            ValueError: A sentence is of no known form.
        """
        found: dict[str, dict[str, Rule]] = {
            op: {text: self._restriction(op, text) for text in restrictions}
            for op, restrictions in self.operators.items()
        }
        for rule in self.rules:
            for op in rule.operators:
                found.setdefault(op, {})[rule.constraint] = rule
        found.pop(GRAPH, None)
        return {
            op: [(rule, parse_restriction(text)) for text, rule in rules.items()]
            for op, rules in found.items()
        }

    @cached_property
    def graph_checks(self) -> Sequence[tuple[Rule, GraphCheck]]:
        """The rules about a graph as a whole, parsed.

        Raises:
            ValueError: A sentence is not known.
        """
        rules = [rule for rule in self.rules if GRAPH in rule.operators]
        if unknown := {rule.constraint for rule in rules} - GRAPH_CHECKS.keys():
            raise ValueError(f"no check of a graph is called {min(unknown)!r}")
        return [(rule, GRAPH_CHECKS[rule.constraint]) for rule in rules]

    def _restriction(self, op: str, text: str) -> Rule:
        return Rule((op,), text, "error", "", "documentation", self.source)

    def absent(self, op: str) -> Rule | None:
        """Return what to say of an operator that is not in the table; None if a rule speaks."""
        ruled = any(
            op in rule.operators and rule.constraint.startswith(OPERATOR) for rule in self.rules
        )
        if op in self.operators or ruled:
            return None
        constraint = f"not in the operator table of {self.device}"
        return replace(self._restriction(op, constraint), severity="warning")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that a finding depends on."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def remedy(self, op: str, rule: Rule) -> str:
        """Return what to do about a restriction; empty where nothing is known."""
        subject = rule.constraint.partition(":")[0]
        keys = (f"{op}.{subject}", f"*.{subject}", op, "*")
        known = next((self.remedies[key] for key in keys if key in self.remedies), "")
        return rule.remedy or known


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
    report.check_graph(model.graph)
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

    def check_graph(self, graph: ir.Graph) -> None:
        for rule, check in self.table.graph_checks:
            for name, evidence in check(graph):
                self._add(name, "", rule, evidence)

    def check_opset(self, opset: int) -> None:
        # A scope without ONNX's own domain has only foreign operators, each a finding by itself.
        minimum, table = self.table.minimum_opset, self.table
        if 0 < opset < minimum:
            rule = Rule((), f"opset: >= {minimum}", "error", "", "documentation", table.source)
            self._add("", "", rule, f"opset is {opset}")

    def check_node(self, seen: Seen) -> None:
        op, where = seen.node.op_type, (seen.name, seen.op)
        if absent := self.table.absent(op):
            self._add(*where, absent, f"operator {seen.op}")
        if malformed := seen.malformed:
            self._add(*where, MALFORMED, malformed)
            return
        for rule, check in self.table.checks.get(op, ()):
            try:
                evidence = check(seen)
            except Unknown as unknown:
                # A table promises nothing else; of an observation more files hold than violate it.
                if rule.confidence == "documentation":
                    doubt = replace(rule, severity="warning")
                    self._add(*where, doubt, f"cannot be checked: {unknown}")
            else:
                if evidence:
                    self._add(*where, rule, evidence)

    def _add(self, node: str, op: str, rule: Rule, detail: str) -> None:
        stage = node.partition("/")[0]
        self.findings.append(
            Finding(
                file=self.file,
                node=node,
                op=op,
                constraint=rule.constraint,
                severity=rule.severity,
                stage=stage if stage in self.stages else "",
                detail=detail,
                remedy=self.table.remedy(op.rpartition("::")[2], rule),
                consequence=rule.consequence,
                confidence=rule.confidence,
                source=rule.source,
            )
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
            values = (value.name for value in (*node.inputs, *node.outputs) if value is not None)
            for text in (node.name or "", node.op_type, node.domain, *values):
                if not isinstance(text, (str, type(None))):
                    raise ValueError(f"a name in it is not UTF-8: {shown(text)}")


def _stages(model: ir.Model) -> frozenset[str]:
    """Return the stages that axcore noted in a graph; none where somebody else wrote there."""
    try:
        listed = decode_json(model.metadata_props.get(STAGES_KEY, "[]"))
    except ValueError:
        return frozenset()
    names = listed if isinstance(listed, list) else []
    return frozenset(name for name in names if isinstance(name, str))
