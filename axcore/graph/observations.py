"""What real compilers were seen to refuse, as checks of a node or of a graph.

Operator tables do not say these things; the sentences are ours, one form for each kind of cause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .seen import Unknown, dimensions, dtype_name, is_constant

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from .seen import Check, Seen

OPERATOR = "operator: "
"""Sentences that begin so speak of every node of the operator, in any form."""

_CONSTANT_ONLY = re.compile(r"constant (\w+): only (-?[\d.]+(?:(?:, | or )-?[\d.]+)*)")
_WRITTEN = re.compile(r"(\w+(?:, \w+)*): must be written")
_GIVEN = re.compile(r"(\w+): must be given")
_CONSTANT = re.compile(r"(\w+): must be constant")
_ONLY_CONSTANT = re.compile(r"(\w+): must not be the only constant")
_AT_LEAST = re.compile(r"(\w+): at least (\d+)-D")
_DTYPE = re.compile(r"(\w+): must not be of type (\w+)")
_SOURCE = re.compile(r"(\w+): must not come from (\w+)")
_SYMMETRIC = re.compile(r"(\w+): equal at both ends")
_IDLE = re.compile(r"(\w+): must not be all (-?[\d.]+) at an output of the graph")


def _constant_only(sentence: str) -> Check | None:
    """``constant Y: only 0.5 or 2``: where the input is a small constant, it holds these alone."""
    if not (match := _CONSTANT_ONLY.fullmatch(sentence)):
        return None
    subject, allowed = match[1], [float(value) for value in re.split(", | or ", match[2])]

    def check(seen: Seen) -> str:
        stray = [value for value in seen.constant(subject) or () if float(value) not in allowed]
        return f"{subject} is {stray[0]}" if stray else ""

    return check


def _written(sentence: str) -> Check | None:
    """``alpha, beta: must be written``: the node has the attributes, be it at their default."""
    if not (match := _WRITTEN.fullmatch(sentence)):
        return None
    names = match[1].split(", ")

    def check(seen: Seen) -> str:
        known = seen.schema.attributes if seen.schema else ()
        missing = [name for name in names if name in known and name not in seen.node.attributes]
        return f"{', '.join(missing)} left to the default" if missing else ""

    return check


def _given(sentence: str) -> Check | None:
    """``axes: must be given``: as an attribute or as an input, whichever the operator set has."""
    if not (match := _GIVEN.fullmatch(sentence)):
        return None
    subject = match[1]

    def check(seen: Seen) -> str:
        given = seen.input(subject) is not None or seen.written(subject)
        return "" if given else f"{subject} is missing"

    return check


def _constant(sentence: str) -> Check | None:
    """``W: must be constant``: the input follows from constants alone."""
    if not (match := _CONSTANT.fullmatch(sentence)):
        return None
    subject = match[1]

    def check(seen: Seen) -> str:
        value = seen.input(subject)
        return "" if value is None or is_constant(value) else f"{subject} is `{value.name}`"

    return check


def _only_constant(sentence: str) -> Check | None:
    """``A: must not be the only constant``: a constant operand is the other one."""
    if not (match := _ONLY_CONSTANT.fullmatch(sentence)):
        return None
    subject = match[1]

    def check(seen: Seen) -> str:
        value = seen.input(subject)
        swapped = value is not None and is_constant(value) and not seen.folds
        return f"{subject} is the constant `{value.name}`" if swapped and value else ""

    return check


def _at_least(sentence: str) -> Check | None:
    """``result: at least 2-D``, ``inputs: at least 1-D``: of what is not folded beforehand."""
    if not (match := _AT_LEAST.fullmatch(sentence)):
        return None
    subject, rank = match[1], int(match[2])

    def check(seen: Seen) -> str:
        if subject == "result" and seen.folds:
            return ""
        values = seen.node.outputs if subject == "result" else seen.node.inputs
        shapes = [dimensions(value) for value in values]
        low = [shape for shape in shapes if len(shape) < rank]
        return f"{subject} has shape {low[0]}" if low else ""

    return check


def _dtype(sentence: str) -> Check | None:
    """``input: must not be of type int32``."""
    if not (match := _DTYPE.fullmatch(sentence)):
        return None
    subject, refused = match.groups()

    def check(seen: Seen) -> str:
        value = seen.input(subject)
        if value is None or value.dtype is None:
            raise Unknown(f"the type of {subject} is not in the file")
        return f"{subject} is {refused}" if dtype_name(value.dtype.value) == refused else ""

    return check


def _source(sentence: str) -> Check | None:
    """``B: must not come from DequantizeLinear``: no such node makes the input."""
    if not (match := _SOURCE.fullmatch(sentence)):
        return None
    subject, operator = match.groups()

    def check(seen: Seen) -> str:
        value = seen.input(subject)
        node = value.producer() if value is not None else None
        return f"{subject} is made by {operator}" if node and node.op_type == operator else ""

    return check


def _symmetric(sentence: str) -> Check | None:
    """``pads: equal at both ends``: as much at the end of each axis as at its begin."""
    if not (match := _SYMMETRIC.fullmatch(sentence)):
        return None
    subject = match[1]

    def check(seen: Seen) -> str:
        values = list(seen.value_of(subject) or ())
        half = len(values) // 2
        return "" if values[:half] == values[half:] else f"{subject} is {values}"

    return check


def _idle(sentence: str) -> Check | None:
    """``B: must not be all 1 at an output of the graph``: such a node is optimised away."""
    if not (match := _IDLE.fullmatch(sentence)):
        return None
    subject, refused = match[1], float(match[2])

    def check(seen: Seen) -> str:
        values = seen.constant(subject)
        idle = values and all(float(value) == refused for value in values)
        made = [value.name for value in seen.node.outputs if value.is_graph_output()]
        return f"{subject} is {match[2]}, and `{made[0]}` an output" if idle and made else ""

    return check


def _vector(sentence: str) -> Check | None:
    """A bias with one dimension, added to a MatMul whose second operand is computed."""
    if sentence != "vector: must not be added to a product of computed matrices":
        return None

    def check(seen: Seen) -> str:
        for bias, product in (seen.node.inputs, seen.node.inputs[::-1]):
            node = product.producer() if product is not None else None
            if (
                bias is not None
                and is_constant(bias)
                and len(dimensions(bias)) == 1
                and node is not None
                and node.op_type == "MatMul"
                and node.inputs[1] is not None
                and not is_constant(node.inputs[1])
            ):
                return f"`{bias.name}` has shape {dimensions(bias)}"
        return ""

    return check


def _operator(sentence: str) -> Check | None:
    """``operator: …``: whatever the node looks like."""
    if not sentence.startswith(OPERATOR):
        return None
    return lambda seen: f"operator {seen.op}"


FORMS = (
    _constant_only, _written, _given, _constant, _only_constant, _at_least, _dtype, _source,
    _symmetric, _idle, _vector, _operator,
)  # fmt: skip


# Graphs ------------------------------------------------------------------------------------------

GRAPH = "graph"
"""The operator of rules about a graph as a whole."""

Evidence = tuple[str, str]
"""What is wrong, as the name of a value, and the evidence."""

GraphCheck = Callable[["ir.Graph"], Iterator[Evidence]]


def _slashes(graph: ir.Graph) -> Iterator[Evidence]:
    for what, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if "/" in str(value.name):
                yield str(value.name), f"{what} is called `{value.name}`"


def _half_inputs(graph: ir.Graph) -> Iterator[Evidence]:
    for value in graph.inputs:
        if value.dtype is not None and dtype_name(value.dtype.value) == "float16":
            yield str(value.name), "input is float16"


GRAPH_CHECKS: Mapping[str, GraphCheck] = {
    'names of inputs and outputs: no "/"': _slashes,
    "inputs: must not be of type float16": _half_inputs,
}
"""The sentences about a graph."""
