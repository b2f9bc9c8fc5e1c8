"""Options that only some models or toolchains have, and validation of their values."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Choice:
    """An option that only some models or toolchains have; on the command line ``--<name> VALUE``.

    Attributes:
        values: The allowed values, the default first. ``("no", "yes")`` makes a switch: on the
            command line, ``--<name>`` alone means yes. Empty allows any value; such an option has
            no default.
        about: What each value does and costs, for help texts.
    """

    values: tuple[str, ...]
    about: str = ""


def resolve(owner: str, declared: Mapping[str, Choice], given: Mapping[str, str]) -> dict[str, str]:
    """Return the value of every option: the user's, or the default.

    An option without default is left out unless the user gives it.

    Args:
        owner: Model or toolchain that has the options, for messages, e.g. "`foo-vl-1b`".
        declared: The options by name.
        given: The user's values.

    Raises:
        UsageError: There is no such option, or the value is not one of those allowed.
    """
    for name, value in given.items():
        choice = declared.get(name)
        if choice is None:
            raise unknown_option(owner, declared, name)
        if choice.values and value not in choice.values:
            raise UsageError(
                f"--{name} {value} is not offered",
                hint=f"choose from {', '.join(choice.values)}: {choice.about}",
            )
    defaults = {name: choice.values[0] for name, choice in declared.items() if choice.values}
    return {**defaults, **given}


def unknown_option(
    owner: str, declared: Iterable[str], name: str, others: Iterable[str] = ()
) -> UsageError:
    """Return what to raise of an option that does not exist; the nearest one is suggested.

    Args:
        owner: See `resolve`.
        declared: Names of its options.
        name: What was given.
        others: Names of options that are taken beside them, as those of a command.
    """
    own = list(declared)
    nearest = difflib.get_close_matches(name, [*own, *others], n=1)
    listed = ", ".join(f"--{known}" for known in own) or "none"
    hint = f"did you mean --{nearest[0]}?" if nearest else f"its options: {listed}"
    return UsageError(f"{owner} has no option --{name}", hint=hint)
