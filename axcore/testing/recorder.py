"""A `Progress` that records, for tests."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Recorder:
    """A `Progress` that records everything reported to it.

    Attributes:
        said: Messages, in order.
        warned: Warnings, in order.
        totals: Task label to the units announced, summed over tasks with that label.
        done: Task label to the units reported as done.
    """

    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def say(self, message: str) -> None:
        """Record the message."""
        self.said.append(message)

    def warn(self, message: str) -> None:
        """Record the warning."""
        self.warned.append(message)

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[_Counted]:
        """Yield a task that adds to `done`."""
        self.totals[label] = self.totals.get(label, 0) + total
        self.done.setdefault(label, 0)
        yield _Counted(self, label)

    def add(self, label: str, amount: float) -> None:
        """Add to `done`; safe to call from several threads."""
        with self._lock:
            self.done[label] += amount


@dataclass(frozen=True)
class _Counted:
    recorder: Recorder
    label: str

    def advance(self, amount: float = 1) -> None:
        self.recorder.add(self.label, amount)
