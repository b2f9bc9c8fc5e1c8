"""What a conversion reports, kept for tests."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Recorder:
    """A `Progress` that keeps what it is told.

    Attributes:
        said: Messages, in their order.
        warned: Warnings, in their order.
        totals: Label of counted work to the units announced; those of one label are added up.
        done: Label to the units reported.
    """

    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def say(self, message: str) -> None:
        """Keep the message."""
        self.said.append(message)

    def warn(self, message: str) -> None:
        """Keep the warning."""
        self.warned.append(message)

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[_Counted]:
        """Yield a task that adds to `done`."""
        self.totals[label] = self.totals.get(label, 0) + total
        self.done.setdefault(label, 0)
        yield _Counted(self, label)

    def add(self, label: str, amount: float) -> None:
        """Add to what is done; threads may call it at once."""
        with self._lock:
            self.done[label] += amount


@dataclass(frozen=True)
class _Counted:
    recorder: Recorder
    label: str

    def advance(self, amount: float = 1) -> None:
        self.recorder.add(self.label, amount)
