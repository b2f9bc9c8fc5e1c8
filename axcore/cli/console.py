"""What people see: lines, tables, progress. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TextIO

import typer

from ..display import UNPRINTABLE, drawn_on, printable

if TYPE_CHECKING:
    from ..errors import AxcoreError


_BREAK = re.compile("[\n\t]")
_data: TextIO | None = None  # standard output, where it is kept for data


@contextmanager
def data_alone() -> Iterator[None]:
    """Keep standard output for `emit`: what plugins and libraries print goes to standard error."""
    global _data
    _data = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _data = None


def emit(data: object, indent: int | None = 2) -> None:
    """Print data as JSON on stdout: over several lines, or on one where `indent` is None."""
    text = json.dumps(data, indent=indent, default=_jsonable, ensure_ascii=False)
    out = _data or sys.stdout
    try:
        text.encode(out.encoding or "utf-8", "surrogatepass")
    except UnicodeEncodeError:  # an encoding of few characters
        text = json.dumps(data, indent=indent, default=_jsonable)
    # What a terminal would obey, or is no text, as JSON spells it: programs read what it was.
    typer.echo(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text), file=out)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns on stdout; a row is a line, whatever its cells are."""
    rows = [[_BREAK.sub(" ", printable(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def fail(error: AxcoreError) -> None:
    """Print fact, evidence and, after a blank line, the remedy."""
    terminal = drawn_on(sys.stderr)
    colour = terminal.isatty() and not os.environ.get("NO_COLOR")
    typer.secho("error: ", fg="red", bold=True, file=terminal, nl=False, color=colour)
    typer.echo(error.message, err=True, color=True)
    if error.hint:
        typer.secho("\nhint: ", fg="cyan", file=terminal, nl=False, color=colour)
        typer.echo(error.hint, err=True, color=True)


def _jsonable(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
