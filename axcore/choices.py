"""Options that only some models or toolchains have, and validation of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


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
            own = ", ".join(f"--{known}" for known in declared) or "none"
            raise UsageError(f"{owner} has no option --{name}", hint=f"its options: {own}")
        if choice.values and value not in choice.values:
            raise UsageError(
                f"--{name} {value} is not offered",
                hint=f"choose from {', '.join(choice.values)}: {choice.about}",
            )
    defaults = {name: choice.values[0] for name, choice in declared.items() if choice.values}
    return {**defaults, **given}
