"""The restrictions of an operator table, as checks of a node.

Vendors publish them as short sentences, most of them of a few regular forms; `parse_restriction`
makes a `Check` of each.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from . import observations
from .seen import dimensions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .seen import Check, Seen

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
            value -= len(dimensions(seen.node.inputs[0]))
        stray = [item for item in _as_list(value) if not any(_same(item, one) for one in allowed)]
        return f"{subject} is {seen.value_of(subject)}" if stray else ""

    return check


def _rank(sentence: str) -> Check | None:
    """``indices: only 1-D``: the input has that many dimensions."""
    if not (match := _RANK.fullmatch(sentence)):
        return None
    subject, rank = match[1], int(match[2])

    def check(seen: Seen) -> str:
        shape = dimensions(seen.input(subject))
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
    shape = dimensions(exponent)
    return "" if math.prod(shape) == 1 else f"exponent has shape {shape}"


def _channel_slope(seen: Seen) -> str:
    shape, slope = (dimensions(value) for value in seen.node.inputs[:2])
    if len(shape) != 4 or slope in ([shape[1]], [1, shape[1], 1, 1]):
        return ""
    return f"input has shape {shape}, slope {slope}"


def _output_padding_within_pads(seen: Seen) -> str:
    padding = _as_list(seen.written("output_padding"))
    if not padding:
        return ""
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

FORMS = (_only, _rank, _except, _refused, _PROSE.get, _information, *observations.FORMS)
