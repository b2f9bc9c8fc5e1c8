"""Where a folder for a board may go: nothing is replaced but what packaging has written there."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..bundle import CHECKSUMS, MANIFEST
from ..errors import BundleError
from ..files import Content, sha256
from ..foreign import read_json
from ..limits import RECORD_BYTES
from ..plain import parse, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..progress import Progress

LIBRARY = "lib"
Runtime = Literal["axllm", "python"]
_NAMED = 5


@dataclass(frozen=True)
class _Packaged:
    """What the manifest of a packaged folder says of it."""

    packaged_for: Runtime
    files: Mapping[str, Content]


def check_target(place: Path, progress: Progress | None = None) -> None:
    """Refuse a place that holds anything but what packaging wrote there, as it was written.

    Bytecode that running the folder left in ``lib`` does not count, nor the record of checksums.

    Args:
        place: The folder, if it is there already; no link.
        progress: Where reading the files is reported; None compares names and sizes alone.

    Raises:
        BundleError: It is a file, or a folder with other files; the first of them are named.
        OSError: It cannot be read.
    """
    if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
        return
    written = _manifest(place)
    if written is None:
        raise BundleError(
            f"{place} exists and was not packaged by axcore",
            hint="choose a new or empty folder with -o; nothing was changed",
        )
    found = list(islice(_foreign(place, written.files), _NAMED + 1))
    if not found and progress is not None:
        found = list(islice(_edited(place, written.files, progress), _NAMED + 1))
    if found:
        names = ", ".join(shown(name) for name in found[:_NAMED])
        raise BundleError(
            f"{place} holds what packaging did not write there: {names}"
            + (" …" if found[_NAMED:] else ""),
            hint="move it elsewhere, or choose a new folder with -o; nothing was changed",
        )


def _manifest(folder: Path) -> _Packaged | None:
    try:
        return parse(_Packaged, read_json(folder / MANIFEST, RECORD_BYTES))
    except (OSError, ValueError):
        return None


def _foreign(place: Path, files: Mapping[str, Content]) -> Iterator[str]:
    """Yield the names of what is not listed or has another size, links and empty folders too."""
    for name in _names(place):
        listed, status = files.get(name), (place / name).lstat()
        ours = name in (MANIFEST, CHECKSUMS) or _is_bytecode(name)
        same = ours if listed is None else listed.size == status.st_size
        if not (same and stat.S_ISREG(status.st_mode)):
            yield name


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of everything below a folder but folders that hold something."""
    left = [folder]
    while left:
        path = left.pop()
        inner = os.listdir(path) if path.is_dir() and not path.is_symlink() else []  # noqa: PTH208 - fast
        left += [path / name for name in sorted(inner, reverse=True)]
        if not inner:
            yield path.relative_to(folder).as_posix()


def _is_bytecode(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == LIBRARY and parts[-2:-1] == ["__pycache__"] and name.endswith(".pyc")


def _edited(place: Path, files: Mapping[str, Content], progress: Progress) -> Iterator[str]:
    """Yield the names of listed files that have another content than was written."""
    there = [name for name in _names(place) if name in files]
    with progress.task("compare", sum(files[name].size for name in there), "B") as task:
        for name in there:
            if sha256(place / name) != files[name].sha256:
                yield name
            task.advance(files[name].size)
