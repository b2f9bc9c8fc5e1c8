"""The restrictions of an operator table, as checks of a node.

Vendors publish them as short sentences, most of them of a few regular forms; `parse_restriction`
makes a `Check` of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


# What is known of a node -------------------------------------------------------------------------


class Unknown(Exception):
    """A restriction cannot be decided from the file; the message says what is missing."""


class Seen:
    """A node and the ONNX schema it is written in: what the restrictions ask about."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.schema = _schema(node.op_type, node.domain, opset)

    @property
    def name(self) -> str:
        """Name of the node, or of its first named output."""
        return self.node.name or next((value.name for value in self.node.outputs if value.name), "")

    @property
    def op(self) -> str:
        """The operator, with its domain where that is not ONNX's own."""
        return f"{self.node.domain}::{self.node.op_type}" if self.node.domain else self.node.op_type

    def written(self, name: str) -> Any:
        """Return an attribute as the node gives it: a number, a string, a list, or None."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return None
        if attribute.is_ref():
            raise Unknown(f"{name} is set by the caller of the function")
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
        raise Unknown("the input is missing")
    constant = ir.convenience.get_const_tensor(value)
    shape = value.shape if constant is None else constant.shape
    if shape is None:
        raise Unknown(f"the shape of `{value.name}` is not in the file")
    return [dim if isinstance(dim, int) else str(dim) for dim in shape]


# What a restriction means ------------------------------------------------------------------------

Check = Callable[[Seen], str]
"""Returns what violates the restriction, with the value found, or the empty string.

Raises `Unknown` where the file does not tell.
"""

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

    def check(seen: Seen) -> str:
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

    def check(seen: Seen) -> str:
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

    def check(seen: Seen) -> str:
        if (value := seen.input(subject)) is not None:
            return f"input {subject} is connected to `{value.name}`"
        written = seen.written(subject)
        if written in (None, []) or _same(written, seen.default(subject)):
            return ""
        return f"{subject} is {written}"

    return check


def _information(sentence: str) -> Check | None:
    """Sentences that forbid nothing, or give no figure to hold a node against."""
    if any(form.fullmatch(sentence) for form in _INFORMATION):
        return lambda _: ""
    return None


def _where(condition: str, check: Check) -> Check:
    """``… where pads is not 0``: the restriction holds only then."""
    match = _WHERE.fullmatch(condition)
    assert match, condition
    subject, negated, value = match[1], bool(match[2]), _literal(match[3])

    def guarded(seen: Seen) -> str:
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


def _scalar_exponent(seen: Seen) -> str:
    import onnx_ir as ir

    exponent = seen.node.inputs[1]
    constant = None if exponent is None else ir.convenience.get_const_tensor(exponent)
    if exponent is not None and constant is None:
        return f"exponent `{exponent.name}` is computed"
    shape = _shape(exponent)
    return "" if math.prod(shape) == 1 else f"exponent has shape {shape}"


def _channel_slope(seen: Seen) -> str:
    shape, slope = (_shape(value) for value in seen.node.inputs[:2])
    if len(shape) != 4 or slope in ([shape[1]], [1, shape[1], 1, 1]):
        return ""
    return f"input has shape {shape}, slope {slope}"


def _output_padding_within_pads(seen: Seen) -> str:
    padding = _as_list(seen.written("output_padding"))
    pads = _as_list(seen.written("pads")) or [0] * 2 * len(padding)
    trailing = pads[len(padding) :]
    if all(extra <= pad for extra, pad in zip(padding, trailing, strict=True)):
        return ""
    return f"output_padding is {padding}, trailing pads are {trailing}"


def _default_activations(seen: Seen) -> str:
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

FORMS = (_only, _rank, _except, _refused, _PROSE.get, _information)
