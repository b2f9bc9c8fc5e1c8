"""Check that what plugins declare has the types that its classes say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from .catalogue import labels
from .choices import Choice
from .errors import ContractError
from .limits import COUNT
from .model_card import ModelCard, Profile
from .plain import UNIONS, field_types, shown

if TYPE_CHECKING:
    from .model_card import Lengths


def check_cards(family: str, cards: Sequence[Any]) -> None:
    """Refuse cards that could not be listed, named or converted.

    Raises:
        ContractError: Names the card, the field and its value.
    """
    owners: dict[str, str] = {}
    for card in cards:
        if not isinstance(card, ModelCard):
            raise ContractError(f"model_cards returned {shown(card)}, not a ModelCard")
        check_card(card)
        for label in sorted(labels(card) & owners.keys()):
            raise ContractError(f"the model name `{label}` is that of two cards of `{family}`")
        owners |= dict.fromkeys(labels(card), family)


def check_card(card: ModelCard) -> None:
    """Refuse a card whose values are not of the types that `ModelCard` declares, or out of range.

    Raises:
        ContractError: Names the card, the field and its value.
    """
    try:
        _check_record(card, ModelCard, "")
        for task, profile in card.profiles.items():
            _check_profile(profile, f"profiles.{task}")
        _check_number(card.parameters, "parameters", 0, 10**15)
        if not (card.id and card.repo and card.architectures and card.profiles):
            raise ValueError("lacks id, repo, architectures or profiles")
        for name in (card.id, *card.aliases):
            if not name.isprintable() or not name or " " in name:
                raise ValueError(f"{shown(name)} is no name that can be typed")
    except ValueError as error:
        raise ContractError(f"model card {shown(getattr(card, 'id', None))}: {error}") from None


def check_offer(what: str, item: Any, protocol: type, taken: Mapping[str, Any]) -> None:
    """Refuse a toolchain or backend that lacks what its protocol says, or could not be listed.

    Raises:
        ContractError: Names it, and what is wrong.
    """
    if not isinstance(item.name, str) or not item.name:
        raise ContractError(f"{what} {shown(item)} has no name")
    if item.name in taken:
        raise ContractError(f"{what} `{item.name}` exists already")
    if not isinstance(item.options, Mapping):
        raise ContractError(f"{what} `{item.name}` has no mapping of options")
    for name, option in item.options.items():
        if not isinstance(name, str) or not isinstance(option, Choice):
            raise ContractError(f"{what} `{item.name}`: its option {name!r} is no axcore.Choice")
        _check_option(f"{what} `{item.name}`: its option {name}", option)
    members = [name for name in vars(protocol) if not name.startswith("_")]
    # On the class, where asking for a property does not compute it: a board lacks its files.
    own = {*dir(type(item)), *getattr(item, "__dict__", ())}
    if missing := [f"`{name}`" for name in members if name not in own]:
        raise ContractError(
            f"{what} `{item.name}` has no {', '.join(missing)}",
            hint=f"implement all of `{protocol.__module__}.{protocol.__name__}`",
        )


def _check_option(what: str, option: Choice) -> None:
    try:
        _check_record(option, Choice, "")
    except ValueError as error:
        raise ContractError(f"{what}: {error}") from None


def _check_profile(profile: Profile, where: str) -> None:
    for name in ("height", "width", "images"):
        _check_number(getattr(profile, name), f"{where}.{name}", 1, COUNT)
    _check_lengths(profile, where)
    if profile.published:
        _check_lengths(profile.published, f"{where}.published")


def _check_lengths(lengths: Profile | Lengths, where: str) -> None:
    for name in ("prefill_len", "kv_cache_len"):
        _check_number(getattr(lengths, name), f"{where}.{name}", 1, COUNT)
    for number in lengths.last_kv_cache_len:
        _check_number(number, f"{where}.last_kv_cache_len", 1, COUNT)


def _check_number(value: int, where: str, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{where} is {shown(value)}, not between {least} and {most}")


# Types -------------------------------------------------------------------------------------------


def _check_record(record: Any, kind: type, where: str) -> None:
    """Compare the fields of a dataclass with the types that `kind` declares."""
    declared = field_types(kind)
    for item in fields(kind):
        _check(getattr(record, item.name), declared[item.name], f"{where}.{item.name}".lstrip("."))


def _check(value: Any, kind: Any, where: str) -> None:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in UNIONS:
        _check_union(value, arguments, where)
        return
    expected = NoneType if kind is None else origin or kind
    # bool is a subclass of int, but true is no number of tokens.
    right = callable(value) if expected is Callable else isinstance(value, expected)
    if not right or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{where} is {shown(value)}, not {_name(kind)}")
    if is_dataclass(kind):
        _check_record(value, kind, where)  # type: ignore[arg-type]
    elif expected is tuple:
        for item in value:
            _check(item, arguments[0], where)
    elif expected is Mapping:
        for name, item in value.items():
            _check(name, arguments[0], where)
            _check(item, arguments[1], f"{where}.{name}")


def _check_union(value: Any, kinds: Sequence[Any], where: str) -> None:
    fitting = [kind for kind in kinds if isinstance(value, _runtime(kind))]
    _check(value, (fitting or kinds)[0], where)


def _runtime(kind: Any) -> Any:
    return get_origin(kind) or kind


def _name(kind: Any) -> str:
    """Return a type as messages call it: tuple of str, ModelCard."""
    if get_origin(kind) is Callable:
        return "a function"
    parts = [_name(part) for part in get_args(kind) if part is not ...]
    name = getattr(get_origin(kind) or kind, "__name__", str(kind))
    return f"{name} of {' to '.join(parts)}" if parts else name
