"""What reaches a terminal: text that is safe to show, and progress for people.

`Bars` and `Lines` are forms of `axcore.progress.Progress`: bars on a terminal or in a notebook,
lines in a log. Both write to standard error. rich is imported with the first bar.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .errors import BudgetError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

# Control characters, those that change the direction of writing, and bytes that are no UTF-8.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

LINE_EVERY_S = 10.0
"""Seconds between the lines by which a log shows that a task is alive."""


def for_people() -> Bars | Lines:
    """Return bars where they can be drawn, else lines."""
    # rich draws in notebooks through ipywidgets, and draws nothing without them.
    notebook = "ipykernel" in sys.modules and find_spec("ipywidgets") is not None
    return Bars() if sys.stderr.isatty() or notebook else Lines()


def size(count: float) -> str:
    """Return bytes for people: 2.7 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def printable(text: str) -> str:
    r"""Return `text` without what a terminal obeys instead of showing: ``\x1b`` for an escape.

    Line breaks and tabs stay. Names and values of files reach a terminal through this alone.
    """
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class Printable:
    """A text stream that lets through only what is `printable`, whoever writes to it.

    The command line puts it before standard output and standard error. So messages of libraries,
    warnings and tracebacks carry no escape sequence out of a name to a terminal. What axcore itself
    draws, colours and bars, goes to `beneath`.

    Attributes:
        beneath: The stream that it writes to.
        data: Whether results are written, which must not get lost; messages may, as on a full disk.
    """

    def __init__(self, beneath: TextIO, *, data: bool) -> None:
        self.beneath, self.data = beneath, data
        if isinstance(beneath, io.TextIOWrapper):
            beneath.reconfigure(errors="backslashreplace")  # an encoding of few characters

    def write(self, text: str) -> int:
        """Write `text` with what is not printable escaped.

        Raises:
            BudgetError: Data could not be written.
            BrokenPipeError: Nobody reads the data any more.
        """
        if safe := printable(text):  # typer tries what a stream takes with an empty one
            self.pass_on(safe)
        return len(text)

    def pass_on(self, text: str) -> None:
        """Write `text` as it is; raises as `write`."""
        with self._kept():
            self.beneath.write(text)

    def flush(self) -> None:
        """Write what waits; raises as `write`."""
        with self._kept():
            self.beneath.flush()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if self.data:
                raise
        except OSError as error:
            if self.data:
                with suppress(OSError):
                    self.beneath.close()  # lest the interpreter tries once more as it ends
                raise BudgetError(
                    f"standard output cannot be written: {error.strerror}",
                    hint="free space where it goes, or send it elsewhere",
                ) from error

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Return what is the same as of the stream beneath."""
        if name == "buffer":  # bytes would pass by
            raise AttributeError(name)
        return getattr(self.beneath, name)


def guard_output() -> None:
    """Put `Printable` before standard output and standard error, for the rest of the process.

    One that is closed is opened as the null device: the next file to be opened would take its
    place, and get what libraries write to it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is taken: that of the stream that is closed.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        stream = getattr(sys, name) or Path(os.devnull).open("w" if descriptor else "r")  # noqa: SIM115
        guard = descriptor > 0 and not isinstance(stream, Printable)
        setattr(sys, name, Printable(stream, data=name == "stdout") if guard else stream)


def drawn_on(stream: TextIO) -> TextIO:
    """Return where axcore's own colours and bars go that belong on `stream`."""
    return stream.beneath if isinstance(stream, Printable) else stream


def stream(text: str) -> None:
    """Write a piece of an answer to standard output: what a model says, a terminal only shows.

    Anything but a terminal gets the text as it is.
    """
    out = sys.stdout
    if isinstance(out, Printable) and not out.isatty():
        out.pass_on(text)
    else:
        out.write(printable(text) if out.isatty() else text)
    out.flush()


class Lines:
    """Plain lines: one when a task begins, one when it ends, and one now and then in between."""

    def __init__(self, every_s: float = LINE_EVERY_S) -> None:
        self._every_s = every_s

    def say(self, message: str) -> None:
        """Print a line."""
        _print(message)

    def warn(self, message: str) -> None:
        """Print a warning."""
        _print(f"warning: {message}")

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[_Counter]:
        """Print what begins, how far it is, and how long it took."""
        self.say(f"{label} ({_amount(total, unit)}) …")
        started = spoken = time.perf_counter()

        def show(done: float) -> None:
            nonlocal spoken
            if done < total and time.perf_counter() - spoken >= self._every_s:
                spoken = time.perf_counter()
                self.say(f"{label}: {_amount(done, unit, of=total)}")

        yield _Counter(show)
        self.say(f"{label}: {time.perf_counter() - started:.1f} s")


class Bars:
    """Bars above which messages scroll; they are gone when the last task ends."""

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), 0

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        if self._running:
            self._rich.console.print(
                printable(message), markup=False, highlight=False, soft_wrap=True
            )
        else:
            _print(message)

    def warn(self, message: str) -> None:
        """Print a warning above the bars."""
        self._rich.console.print(
            printable(f"warning: {message}"),
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[_Counter]:
        """Show a bar until the block ends."""
        bars = self._rich
        self._count(+1)
        identity = bars.add_task(printable(label), total=total, amount=_amount(0, unit, of=total))

        def show(done: float) -> None:
            bars.update(identity, completed=done, amount=_amount(done, unit, of=total))

        try:
            yield _Counter(show)
        finally:
            bars.remove_task(identity)
            self._count(-1)

    def _count(self, change: int) -> None:
        """Draw as long as there is a task."""
        with self._lock:
            before, self._running = self._running, self._running + change
            if not before:
                self._rich.start()
            elif not self._running:
                self._rich.stop()

    @cached_property
    def _rich(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
        )
        # Redirected, the messages of others would pass by what `Printable` holds back.
        return Progress(
            *columns,
            console=Console(file=drawn_on(sys.stderr)),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )


class _Counter:
    """Adds up what is done, from any thread, and shows the sum."""

    def __init__(self, show: Callable[[float], None]) -> None:
        self._show, self._done, self._lock = show, 0.0, threading.Lock()

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more units as done."""
        with self._lock:
            self._done += amount
            self._show(self._done)


def _amount(count: float, unit: str, of: float | None = None) -> str:
    if unit == "B":
        return size(count) if of is None else f"{size(count)} of {size(of)}"
    return (f"{count:g}" if of is None else f"{count:g} of {of:g}") + f" {unit}".rstrip()


def _print(message: str) -> None:
    sys.stderr.write(f"{printable(message)}\n")
    sys.stderr.flush()
