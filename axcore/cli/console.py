"""What people see: lines, tables, progress. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TextIO

import typer

from ..errors import BudgetError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from ..errors import AxcoreError
    from ..progress import Progress, Task


def emit(data: object) -> None:
    """Print data as JSON on stdout."""
    typer.echo(json.dumps(data, indent=2, default=_jsonable))


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns on stdout."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def size(count: float) -> str:
    """Return bytes for people: 2.7 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


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


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield bars on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Terminal(bars)


class Lines:
    """A `Progress` of plain lines: one when work begins, one when it ends."""

    def say(self, message: str) -> None:
        """Print a line."""
        typer.echo(message, err=True)

    def warn(self, message: str) -> None:
        """Print a warning."""
        typer.echo(f"warning: {message}", err=True)

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[Task]:
        """Print what begins, and how long it took."""
        self.say(f"{label} ({_amount(total, unit)}) …")
        started = time.perf_counter()
        yield _Counter()
        self.say(f"{label}: {time.perf_counter() - started:.1f} s")


class _Counter:
    def advance(self, amount: float = 1) -> None:
        """Count nothing: a log has no use for every step."""


class Terminal:
    """A `Progress` of bars above which messages scroll."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(message, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """Print a warning above the bars."""
        self._bars.console.print(
            f"warning: {message}", style="yellow", markup=False, highlight=False
        )

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[Task]:
        """Show a bar until the block ends."""
        identity = self._bars.add_task(label, total=total, amount="")
        try:
            yield _Bar(self._bars, identity, total, unit)
        finally:
            self._bars.remove_task(identity)


class _Bar:
    def __init__(self, bars: Bars, identity: TaskID, total: float, unit: str) -> None:
        self._bars, self._identity = bars, identity
        self._total, self._unit, self._done = total, unit, 0.0
        self._lock = threading.Lock()

    def advance(self, amount: float = 1) -> None:
        """Move the bar."""
        with self._lock:
            self._done += amount
            done = _amount(self._done, self._unit, of=self._total)
            self._bars.update(self._identity, completed=self._done, amount=done)


def _amount(count: float, unit: str, of: float | None = None) -> str:
    if unit == "B":
        return size(count) if of is None else f"{size(count)} of {size(of)}"
    return f"{count:g} {unit}" if of is None else f"{count:g} of {of:g} {unit}"


def _jsonable(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
