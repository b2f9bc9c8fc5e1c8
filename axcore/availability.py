"""Whether something can run on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """Whether a toolchain can run here: what was found, and what would make it available."""

    available: bool
    detail: str
    remedy: str = ""
