"""Dataclasses as JSON-like data, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axcore import (
    BuildRequest,
    Calibration,
    Embedding,
    GraphFile,
    LlmBuildArgs,
    Options,
    Port,
    Profile,
    Request,
    UsageError,
)
from axcore.plain import Between, parse, plain


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Whole:
    part: Part
    weight: float = 1.0
    kind: Literal["one", "two"] = "one"
    parts: tuple[Part, ...] = ()
    named: Mapping[str, Part] = field(default_factory=dict)
    maybe: int | None = None
    split: int | Literal["auto"] | None = None
    anything: Any = None
    flag: bool = False


TEXT = st.text(max_size=5)
PARTS = st.builds(Part, TEXT, st.lists(st.integers(), max_size=3).map(tuple))
WHOLES = st.builds(
    Whole,
    part=PARTS,
    weight=st.floats(allow_nan=False, allow_infinity=False),
    kind=st.sampled_from(["one", "two"]),
    parts=st.lists(PARTS, max_size=2).map(tuple),
    named=st.dictionaries(TEXT, PARTS, max_size=2),
    maybe=st.none() | st.integers(),
    split=st.none() | st.integers() | st.just("auto"),
    anything=st.none() | st.integers() | st.lists(TEXT),
    flag=st.booleans(),
)


@given(WHOLES)
def test_what_was_written_is_read_back(whole: Whole) -> None:
    """Through JSON text, with every kind of field that manifests have. Oracle: the value itself."""
    assert parse(Whole, json.loads(json.dumps(plain(whole)))) == whole


def test_the_values_of_a_manifest_are_read_back() -> None:
    """A build request with everything that nests. Oracle: the value itself."""
    graph = GraphFile(
        "stem", (Port("x", (1, 3, 2, 2)),), (Port("y", (4, 8), "bfloat16"),),
        Calibration("Image", (1.0, 2.0, 3.0), None, "BGR", src_dtype="U8"), "x.tar", 4,
        {"pulsar2": {"quant": {"method": "MinMax"}}}, "vision",
    )  # fmt: skip
    llm = LlmBuildArgs(128, 2047, (128, 256), notes=("careful",))
    request = BuildRequest("toy", "/nowhere", {"chip": "AX650"}, "image", (graph,), llm, 28)
    assert parse(BuildRequest, plain(request)) == request
    options = Options(split="auto", last_kv_cache_len=(4,), choices={"tiles": "3"})
    assert parse(Options, plain(options)) == options
    assert parse(Embedding, plain(Embedding("key", (2, 3), 12.0))).scale == 12.0


def test_what_a_later_version_adds_is_passed_over() -> None:
    """Names that are not known, at any depth; fields that are missing keep their default."""
    data = {"part": {"name": "n", "colour": "red"}, "novelty": [1]}
    assert parse(Whole, data) == Whole(Part("n"))


def test_a_whole_number_is_a_float_too() -> None:
    """JSON writers drop the fraction; the type is the field's."""
    found = parse(Whole, {"part": {"name": "n"}, "weight": 2})
    assert (found.weight, type(found.weight)) == (2.0, float)


def shaped(kind: Any) -> st.SearchStrategy[Any]:
    """Return data that are nearly those of a type: every value may be of any other."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        each = {item.name: shaped(hints[item.name]) for item in fields(kind)}
        fitting: Any = st.fixed_dictionaries({}, optional=each)
    elif origin is tuple:
        fitting = st.lists(shaped(arguments[0]), max_size=2)
    elif origin is Literal:
        fitting = st.sampled_from(arguments)
    elif origin in (Union, UnionType):
        fitting = st.one_of(*map(shaped, arguments))
    elif origin is not None:
        fitting = st.dictionaries(TEXT, shaped(arguments[1]), max_size=2)
    else:
        plain_kinds = {str: TEXT, Path: TEXT, int: st.integers(), float: st.floats()}
        fitting = plain_kinds.get(kind, DATA)
    return fitting if kind is Any else st.one_of(fitting, fitting, fitting, DATA)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
) | st.sampled_from([10**400, -(10**400), "\0", "\ud800", {"": {}}, [[[]]]])  # fmt: skip


@pytest.mark.parametrize(
    "kind", [Whole, BuildRequest, Options, Request, Profile, Embedding, GraphFile, LlmBuildArgs]
)
def test_whatever_a_file_says_is_a_value_or_a_value_error(kind: type[Any]) -> None:
    """Of everything that is read back. Oracle: the value, which reads as itself once more."""

    @settings(max_examples=60, deadline=None)
    @given(shaped(kind))
    def check(data: Any) -> None:
        try:
            value = parse(kind, data)
        except ValueError as error:
            assert len(str(error)) < 1000  # noqa: PT017 - most data are no error
        else:
            assert parse(kind, asdict(value)) == value

    check()


@given(shaped(Request))
@settings(max_examples=60, deadline=None)
def test_whatever_a_request_is_given_is_a_request_or_a_usage_error(data: Any) -> None:
    """A function is called with anything. Oracle: the law, and that the error has a remedy."""
    arguments = {str(name): value for name, value in data.items()} if isinstance(data, dict) else {}
    try:
        assert Request.of(arguments.pop("model", data), **arguments)
    except UsageError as error:
        assert error.hint  # noqa: PT017 - most data are no error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "part: missing"),
        ({"part": {}}, "part.name: missing"),
        ({"part": 3}, "part: 3 is not of type Mapping"),
        ({"part": {"name": 3}}, "part.name: 3 is not of type str"),
        ({"part": {"name": "n", "sizes": [1, "2"]}}, "part.sizes.1: '2' is not of type int"),
        ({"part": {"name": "n", "sizes": [True]}}, "part.sizes.0: True is not of type int"),
        ({"part": {"name": "n", "sizes": "12"}}, "part.sizes: '12' is not of type list"),
        ({"part": {"name": "n"}, "kind": "three"}, "kind: 'three' is not one of 'one', 'two'"),
        ({"part": {"name": "n"}, "named": {"a": {}}}, "named.a.name: missing"),
        ({"part": {"name": "n"}, "parts": [{"name": "m"}, {}]}, "parts.1.name: missing"),
        ({"part": {"name": "n"}, "maybe": "x"}, "maybe: 'x' is not of type int"),
        ({"part": {"name": "n"}, "weight": "heavy"}, "weight: 'heavy' is not of type float"),
        ({"part": {"name": "n"}, "flag": 1}, "flag: 1 is not of type bool"),
        ([], r": \[\] is not of type Mapping"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, message: str) -> None:
    """The place in dots, the value, and what was wanted."""
    with pytest.raises(ValueError, match=f"^{message}"):
        parse(Whole, data)


@dataclass(frozen=True)
class Bounded:
    count: Annotated[int, Between(1, 8)]
    sides: tuple[Annotated[float, Between(0.5, 0.5)], ...] = ()
    patch: Literal[14] = 14
    flag: Literal[True] = True

    def __post_init__(self) -> None:
        if self.count == 7:
            raise ValueError("count: 7 is odd")


@dataclass(frozen=True)
class Around:
    inner: Bounded


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"count": 0}, "inner.count: 0 is not between 1 and 8"),
        ({"count": 9}, "inner.count: 9 is not between 1 and 8"),
        ({"count": 4.0}, "inner.count: 4.0 is not of type int"),
        ({"count": True}, "inner.count: True is not of type int"),
        ({"count": 1, "sides": [0.5, 0.25]}, "inner.sides.1: 0.25 is not 0.5"),
        ({"count": 1, "patch": 14.0}, "inner.patch: 14.0 is not one of 14"),
        ({"count": 1, "flag": 1}, "inner.flag: 1 is not one of True"),
        ({"count": 7}, "inner.count: 7 is odd"),
    ],
)
def test_numbers_have_bounds_and_literals_a_type(data: Any, message: str) -> None:
    """What a dataclass refuses itself is named by its place too. Oracle: the rules above."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse(Around, {"inner": data})
    assert parse(Around, {"inner": {"count": 8, "sides": [0.5]}}).inner.count == 8
