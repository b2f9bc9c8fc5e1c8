"""Copy files into the folder for a board."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..display import size
from ..errors import BudgetError, BundleError
from ..foreign import open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..progress import Progress

_FICLONE = getattr(fcntl, "FICLONE", 0x40049409)  # Python has the name from 3.12 on
_CHUNK_BYTES = 4 << 20


def copy_files(files: Mapping[str, Path], folder: Path, progress: Progress) -> None:
    """Copy files, whose copies share their blocks where the file system can do that.

    On Btrfs or XFS that takes no time and no room. Hard links would not either, but what is changed
    in one folder would change in the other, and ONNX refuses weights that have several names.

    Args:
        files: Name below `folder`, with ``/`` between its parts, to the file that is copied.
        folder: Has none of them yet.
        progress: Where to report.

    Raises:
        BudgetError: They do not fit onto the disk.
        BundleError: One is no regular file.
        OSError: One cannot be read or written.
    """
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    left = {name: path for name, path in files.items() if not _cloned(path, folder / name)}
    total = sum(path.stat().st_size for path in left.values())
    _check_room(folder, total)
    with progress.task("copy", total, "B") as task:
        for name, path in left.items():
            with open_regular(path) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
                task.advance(target.tell())


def _cloned(path: Path, target: Path) -> bool:
    """Make `target` share the blocks of `path`; False, and an empty file, where that cannot be."""
    try:
        source = open_regular(path)
    except ValueError as error:
        raise BundleError(
            f"{path} cannot be packaged: {error}", hint="put a regular file in its place"
        ) from error
    with source, target.open("xb") as made:
        try:
            fcntl.ioctl(made.fileno(), _FICLONE, source.fileno())
        except OSError:
            return False
    return True


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BudgetError(
            f"packaging needs {size(needed)} in {folder.parent}; {size(free)} are free",
            hint="make room there, or choose another disk with -o; a folder that is replaced keeps"
            " its room until the new one is whole",
        )
