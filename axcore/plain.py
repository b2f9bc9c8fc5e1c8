"""Convert dataclasses to JSON-like data and back.

Written by hand because a board reads manifests too, and pydantic is not available there.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Between:
    """What a number may be, for `Annotated`: ``Annotated[int, Between(1, 8)]``."""

    least: float
    most: float

    def check(self, value: float, where: str) -> None:
        """Refuse a value outside with a ValueError."""
        if not self.least <= value <= self.most:
            allowed = f"between {self.least} and {self.most}"
            expected = allowed if self.least < self.most else f"{self.least}"
            raise ValueError(f"{where}: {shown(value)} is not {expected}")


UNIONS = (Union, types.UnionType)
"""What `get_origin` returns of a type that is one of several."""


def plain(value: object) -> Any:
    """Convert a dataclass instance to dicts, lists, strings and numbers."""
    return json.loads(json.dumps(asdict(value), default=str))  # type: ignore[call-overload]


def parse(kind: type[T], data: Any) -> T:
    """Build an instance of the dataclass `kind` from data made by `plain`.

    Unknown names are ignored, so that later versions can add fields.

    Raises:
        ValueError: A value is missing, has the wrong type, or is not what `Literal`, `Between` or
            the dataclass itself allow; the message names its path.
    """
    return _parse(kind, data, "")  # type: ignore[no-any-return]


def shown(value: object, most: int = 80) -> str:
    """Return a value of a file for a message: quoted, without control characters, and short."""
    if isinstance(value, (dict, list, tuple)) and len(value) > most:
        return f"{type(value).__name__} of {len(value)}"
    text = ascii(value[: most + 1]) if isinstance(value, (str, bytes)) else ascii(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _parse(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if kind is Path and isinstance(data, str):
        return Path(data)
    if origin is Annotated:
        value = _parse(arguments[0], data, where)
        for rule in arguments[1:]:
            rule.check(value, where)
        return value
    if is_dataclass(kind):
        return _record(kind, _typed(Mapping, data, where), where)
    if origin in UNIONS:
        return _first_fitting(arguments, data, where)
    if origin is Literal:
        # 14.0 equals 14, and true equals 1.
        if not any(data == value and type(data) is type(value) for value in arguments):
            raise ValueError(
                f"{where}: {shown(data)} is not one of {', '.join(map(repr, arguments))}"
            )
        return data
    if origin is tuple:
        items = _typed(list, list(data) if isinstance(data, tuple) else data, where)
        return tuple(_parse(arguments[0], v, f"{where}.{i}") for i, v in enumerate(items))
    if origin is not None:
        pairs = _typed(Mapping, data, where).items()
        return {name: _parse(arguments[1], value, f"{where}.{name}") for name, value in pairs}
    return _number(data, where) if kind is float else _typed(kind, data, where)


def _record(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    hints, values = field_types(kind), {}
    for field in fields(kind):
        name = f"{where}.{field.name}".lstrip(".")
        if field.name in data:
            values[field.name] = _parse(hints[field.name], data[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name}: missing")
    try:
        return kind(**values)
    except ValueError as error:  # of a `__post_init__`
        raise ValueError(f"{where}.{error}".lstrip(".")) from error


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, by name."""
    return get_type_hints(kind, include_extras=True)  # evaluates every annotation anew


def _number(data: Any, where: str) -> float:
    # JSON written elsewhere may spell 1.0 as 1.
    value = _typed((int, float), data, where)
    if abs(value) > sys.float_info.max or value != value:
        raise ValueError(f"{where}: {shown(data)} is not a finite number")
    return float(value)


def _first_fitting(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _parse(kind, data, where)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def _typed(kind: Any, data: Any, where: str) -> Any:
    # bool is a subclass of int, but true is not a number in a manifest.
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where}: {shown(data)} is not of type {_name(kind)}")
    return data


def _name(kind: Any) -> str:
    return "float" if isinstance(kind, tuple) else getattr(kind, "__name__", str(kind))
