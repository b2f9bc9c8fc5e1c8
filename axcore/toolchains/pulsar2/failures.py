"""Failures of Pulsar2 that were seen before, told by what it prints.

Marks are plain text that occurs in the end of a log: searching takes time linear in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from ...plain import parse


@dataclass(frozen=True)
class Failure:
    """A failure that somebody has seen.

    Attributes:
        marks: What the end of the log then holds, all of it.
        meaning: What is wrong.
        remedy: What to do.
        source: Who saw it.
        confidence: "build" was seen in a real build, "inferred" follows from such.
        versions: Of Pulsar2; empty where that is not said.
        codes: How the tool then ends; empty for any failure.
    """

    marks: tuple[str, ...]
    meaning: str
    remedy: str
    source: str
    confidence: str
    versions: str = ""
    codes: tuple[int, ...] = ()

    def fits(self, said: str, code: int) -> bool:
        """Say whether a failure looks like this one."""
        return all(mark in said for mark in self.marks) and code in (self.codes or (code,))


def explain(said: str, code: int) -> str:
    """Return what is known of a failure.

    Args:
        said: The end of the log.
        code: How the tool ended; 0 where it left files out.
    """
    for known in failures():
        if known.fits(said, code):
            seen = "seen in builds" if known.confidence == "build" else known.confidence
            by = f" of Pulsar2 {known.versions}" if known.versions else ""
            return f"probably {known.meaning}: {known.remedy} ({seen}{by}; source: {known.source})"
    return ""


@cache
def failures() -> tuple[Failure, ...]:
    """Return the table, in the order in which it is searched."""
    text = resources.files(__package__ or "").joinpath("data/failures.json").read_text("utf-8")
    return tuple(parse(Failure, entry) for entry in json.loads(text)["failures"])
