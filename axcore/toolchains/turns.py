"""Runs of a tool that must not happen twice at once on a machine, whoever starts them."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import cache_folder, lock, owner_of, sign

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..progress import Progress

_POLL_S = 0.2


def lock_name(name: str) -> str:
    """Name of the lock file of the tool `name`; see `turn` for its folder."""
    return f"axcore-{name}.lock"


@contextmanager
def turn(name: str, progress: Progress) -> Iterator[list[int]]:
    """Wait until nobody else on the machine runs the tool `name`, and keep others waiting.

    The lock is a file in the folder for temporary files, which all users share; ``TMPDIR`` names
    another one. Where it cannot be used, one in the user's cache is, and that is said. Neither is
    seen from inside a container that has such folders of its own.

    Yields:
        The descriptors by which a run of the tool keeps the lock; none where no lock can be had.
    """
    held = _taken(name, progress)
    try:
        yield held
    finally:
        for descriptor in held:
            os.close(descriptor)


def _taken(name: str, progress: Progress) -> list[int]:
    places = [Path(os.environ.get("TMPDIR") or "/tmp"), cache_folder("locks")]  # noqa: S108
    for place in places:
        path = place / lock_name(name)
        try:
            place.mkdir(parents=True, exist_ok=True)
            held = _waited(path, name, progress)
        except OSError as error:
            progress.say(f"{path} cannot be locked: {error.strerror}")
            continue
        sign(held)
        return [held]
    progress.warn(f"nothing keeps another {name} from running at the same time on this machine")
    return []


def _waited(path: Path, name: str, progress: Progress) -> int:
    """Return the lock; every user may take it."""
    told = False
    while (held := lock(path, shared=True)) is None:
        if not told:
            progress.warn(
                f"waiting for another {name} on this machine, process {owner_of(path)}: two at once"
                f" were seen to leave broken models; the lock is {path}"
            )
            told = True
        time.sleep(_POLL_S)
    return held
