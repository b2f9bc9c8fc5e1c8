"""How long work reports: the library speaks to a `Progress`, the caller decides how that looks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Task(Protocol):
    """One counted piece of work."""

    def advance(self, amount: float = 1) -> None:
        """Report `amount` more units as done."""


class Progress(Protocol):
    """Where messages and counted work go. Safe to call from several threads."""

    def say(self, message: str) -> None:
        """Report one fact, a line without full stop."""

    def warn(self, message: str) -> None:
        """Report what the user should know before trusting the result."""

    def task(self, label: str, total: float, unit: str = "") -> AbstractContextManager[Task]:
        """Begin work of `total` units; `unit` is "B" for bytes, else a plural noun."""


class Silent:
    """A `Progress` that drops everything: the library's default."""

    def say(self, message: str) -> None:
        """Drop the message."""

    def warn(self, message: str) -> None:
        """Drop the message."""

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[Task]:
        """Yield a task that counts nothing."""
        yield self

    def advance(self, amount: float = 1) -> None:
        """Count nothing."""


def as_progress(progress: Progress | bool | None) -> Progress:
    """Return where to report.

    Args:
        progress: True for bars on a terminal or in a notebook and for lines elsewhere; None or
            False for nothing; a `Progress` is returned as it is.
    """
    if progress is True:
        from .display import for_people

        return for_people()
    return progress or Silent()
