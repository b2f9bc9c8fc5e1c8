"""What people see: lines, tables, progress. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TextIO

import typer

from ..errors import BudgetError

if TYPE_CHECKING:
    from ..errors import AxcoreError


def emit(data: object, indent: int | None = 2) -> None:
    """Print data as JSON on stdout: over several lines, or on one where `indent` is None."""
    text = json.dumps(data, indent=indent, default=_jsonable, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # an encoding of few characters, or a file name that is no text
        text = json.dumps(data, indent=indent, default=_jsonable)
    typer.echo(text)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns on stdout."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@contextmanager
def explained_output() -> Iterator[None]:
    """Explain a standard output that takes no more; a closed pipe never comes here.

    Raises:
        BudgetError: Something printed could not be written.
    """
    try:
        yield
    except OSError as error:
        if not _is_stuck(sys.stdout):
            raise
        raise BudgetError(
            f"standard output cannot be written: {error.strerror}",
            hint="free space where it goes, or send it elsewhere",
        ) from error


def _is_stuck(stream: TextIO) -> bool:
    """Say whether a stream takes not even an empty line, and close it then."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        with suppress(OSError):
            stream.close()  # lest the interpreter tries once more as it ends
        return True
    return False


def fail(error: AxcoreError) -> None:
    """Print fact, evidence and, after a blank line, the remedy."""
    colour = False if os.environ.get("NO_COLOR") else None  # None: on a terminal
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False, color=colour)
    typer.echo(error.message, err=True)
    if error.hint:
        typer.secho("\nhint: ", fg="cyan", err=True, nl=False, color=colour)
        typer.echo(error.hint, err=True)


def _jsonable(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
