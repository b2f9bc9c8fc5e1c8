"""Commands whose options are the fields of a request."""

from __future__ import annotations

import functools
import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from .options import models, path, toolchains

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field

    from ..request import CheckpointRequest


def spelt_out(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `request` of a command by the fields of its class.

    Returns:
        The command with the model as its argument, and an option for every other field.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "request"]
    kind: type[CheckpointRequest] = signature.parameters["request"].annotation
    hints = get_type_hints(kind)
    spelt = [_parameter(item, hints[item.name]) for item in fields(kind) if item.metadata]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {p.name: values.pop(p.name) for p in spelt}
        arguments = {name: value for name, value in given.items() if value is not None}
        command(request=kind.of(**arguments), **values)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*spelt, *own)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameter(item: Field[Any], kind: Any) -> inspect.Parameter:
    text, flag = item.metadata["help"], item.metadata.get("flag")
    if item.name == "model":
        annotation = Annotated[str, typer.Argument(help=text, autocompletion=models)]
        return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    if item.default is False:
        flag = f"--{item.name.replace('_', '-')}"  # without a --no- form
    names = (flag,) if flag else ()
    completion = toolchains if item.name == "toolchain" else None
    read = _on_the_command_line(kind)
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=item.default or None if kind is not bool else item.default,
        annotation=Annotated[
            read,
            typer.Option(
                *names,
                help=text,
                autocompletion=completion,
                parser=path if read == list[Path] | None else None,
            ),
        ],
    )


def _on_the_command_line(kind: Any) -> Any:
    """Return the type in which typer reads a field; absent options are None."""
    if kind is bool:
        return bool
    kinds = [part for part in get_args(kind) or (kind,) if part is not type(None)]
    if get_origin(kind) in (Literal, tuple):
        kinds = [kind]
    if get_origin(kinds[0]) is tuple:
        return list[get_args(kinds[0])[0]] | None  # type: ignore[misc]
    # A number or a word is read as text, and told apart by the request.
    return (kinds[0] if len(kinds) == 1 else str) | None
