"""Options that only some models, toolchains or backends have, and what a shell completes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..choices import unknown_option
from ..errors import UsageError
from ..paths import given_path
from ..plugins import Registry

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def path(text: str) -> Path:
    """Read the value of an argument that is a path; typer says which one is wrong.

    Raises:
        typer.BadParameter: See `given_path`.
    """
    try:
        return given_path(text)
    except UsageError as error:
        raise typer.BadParameter(f"{error.message} ({error.hint})") from error


def given_choices(context: typer.Context, owner: str, declared: Collection[str]) -> dict[str, str]:
    """Return what was given of options that are not the command's own.

    They are written ``--name VALUE``, ``--name=VALUE`` or ``--name``, which means yes.

    Args:
        owner: What has them, for messages.
        declared: Names of those that there are.

    Raises:
        UsageError: There is no such option; the nearest one is suggested.
    """
    found: dict[str, str] = {}
    waiting = list(context.args)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        if not name.startswith("--"):
            raise UsageError(
                f"unexpected argument {name!r}", hint="write options as --NAME VALUE; see --help"
            )
        if not equals:
            alone = not waiting or waiting[0].startswith("--")
            value = "yes" if alone else waiting.pop(0)
        found[name.removeprefix("--")] = value
    own = [
        name.lstrip("-")
        for option in context.command.params
        for name in (*option.opts, *option.secondary_opts)
    ]
    for name in found:
        if name not in declared:
            raise unknown_option(owner, declared, name, own)
    return found


def of_conversion(
    registry: Registry, model: str, family: str | None, toolchain: str
) -> tuple[str, Collection[str]]:
    """Return model and toolchain as messages call them, and the options of both.

    Where the model has to be recognised, they are those of all models.
    """
    tool, options = of_toolchain(registry, toolchain)
    if os.path.isdir(os.path.expanduser(model)):  # noqa: PTH111, PTH112 - those of Path raise
        choices = {name for entry in registry.entries for name in entry.card.choices}
        return f"a model with {tool}", sorted(choices | set(options))
    card = registry.find(model, family).card
    return f"`{card.id}` with {tool}", {**dict.fromkeys(card.choices), **dict.fromkeys(options)}


def of_toolchain(registry: Registry, name: str | None) -> tuple[str, Collection[str]]:
    """Return a toolchain's name and its options; those of all where the bundle names it."""
    if name in registry.toolchains:
        return f"toolchain `{name}`", registry.toolchains[name].options
    return "a toolchain", sorted({o for t in registry.toolchains.values() for o in t.options})


def of_backend(registry: Registry, name: str) -> tuple[str, Collection[str]]:
    """Return a backend as messages call it, and its options."""
    return f"backend `{name}`", getattr(registry.backends.get(name), "options", {})


# Completion --------------------------------------------------------------------------------------


def models(incomplete: str) -> list[str]:
    """Return the models that a shell may complete."""
    registry = Registry()
    return _starting(incomplete, map(registry.name_of, registry.entries))


def toolchains(incomplete: str) -> list[str]:
    """Return the toolchains that a shell may complete."""
    return _starting(incomplete, Registry().toolchains)


def backends(incomplete: str) -> list[str]:
    """Return the backends that a shell may complete."""
    return _starting(incomplete, Registry().backends)


def _starting(beginning: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(beginning)]
