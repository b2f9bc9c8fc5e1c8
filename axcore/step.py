"""Records of finished steps, which lie in a bundle's state folder.

A bundle may have been sent by somebody, its state with it: a record that is damaged counts as
absent, and no name in one leads out of the bundle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from .errors import BundleError
from .files import Content
from .foreign import check_name, read_json
from .limits import RECORD_BYTES
from .plain import parse, shown

STATE = ".axcore"
"""Folder in a bundle for what is no result: unfinished steps, records, the lock."""

PUBLISHED = "published"
"""Folder of a series for the records of steps whose files lie in the bundle."""

BUILD = "build-"
"""What the series of a toolchain begins with; its name follows."""


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
        name: Its name.
        key: Digest of everything that the result depends on.
        files: Path below the bundle to content.
        metrics: What it measured; reproducible.
        seconds: How long it took.
        reused: Whether an earlier run did the work.

    Raises:
        ValueError: A name is none of a file in the bundle, or of one in its state.
    """

    name: str
    key: str
    files: Mapping[str, Content]
    metrics: Mapping[str, Any]
    seconds: float
    reused: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check_step_name(self.name)
        for name in self.files:
            check_name(name)
            if name.split("/")[0] == STATE:
                raise ValueError(f"{shown(name)} is in the state folder")

    def dump(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> Step | None:
        """Read a record; None when there is none or it is damaged."""
        try:
            return replace(parse(cls, read_json(path, RECORD_BYTES)), reused=True)
        except (OSError, ValueError):
            return None


def check_step_name(name: str) -> None:
    """Refuse what is not the name of one folder.

    Raises:
        ValueError: It is empty, or has parts.
    """
    check_name(name)
    if "/" in name:
        raise ValueError(f"{shown(name)} is not a name of a step")


def published(series: Path) -> list[Step]:
    """Return the records of a series whose files lie in the bundle, each under its own name."""
    found = ((path, Step.load(path)) for path in sorted((series / PUBLISHED).glob("*.json")))
    return [step for path, step in found if step is not None and path.name == f"{step.name}.json"]


def builds(folder: Path) -> dict[str, list[Step]]:
    """Return what the builds of a bundle have made: toolchain to the records of its steps."""
    series = sorted((folder / STATE).glob(f"{BUILD}*"))
    return {path.name.removeprefix(BUILD): published(path) for path in series}


def check_state(folder: Path) -> None:
    """Refuse a bundle whose state folder holds links: what is written there stays there.

    Raises:
        BundleError: It is a link, or holds one; names it.
    """
    for path in chain([folder / STATE], walk(folder / STATE)):
        if path.is_symlink():
            raise BundleError(
                f"{path} is a link; a state folder holds none",
                hint="remove it, and whatever else came with that bundle; nothing was changed",
            )


def walk(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder; links are not followed."""
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in (*folders, *files))
