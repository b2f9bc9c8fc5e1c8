"""`package`: write the folder that a runtime on a board expects, completely or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..bundle import MANIFEST, PACKAGED
from ..errors import BundleError, UsageError
from ..files import Content, appearing, explained_full_disk, sha256
from .source import Source

if TYPE_CHECKING:
    from ..plugins import Registry
    from ..progress import Progress

Runtime = Literal["axllm", "python"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def package(
    bundle: Path, out: Path, runtime: Runtime, registry: Registry, progress: Progress
) -> Path:
    """Package a built bundle for a board, and return `out`.

    Model files are hard links where possible, so that they do not take up space twice.

    Args:
        bundle: A folder filled by `convert` and `build`.
        out: The new folder, or a link to it. A folder packaged earlier is replaced.
        runtime: "axllm" for Axera's ``axllm``, "python" for the loop of `axcore.runtime`.

    Raises:
        UsageError: There is no such runtime.
        PluginNotFound: No installed plugin knows the model.
        BundleError: The bundle is not built, incomplete or changed, or `out` holds other files.
        UnsupportedModel: The runtime cannot run this model.
        AxcoreError: A subclass says what is wrong; `out` is unchanged.
    """
    if runtime not in RUNTIMES:
        raise UsageError(
            f"there is no runtime `{runtime}`", hint=f"choose --runtime from {', '.join(RUNTIMES)}"
        )
    source = Source.open(bundle, registry)
    _check_target(out)
    place = Path(os.path.realpath(out))
    with explained_full_disk(place.parent), appearing(place) as folder:
        folder.mkdir()
        if runtime == "axllm":
            from .axllm import fill
        else:
            from .python import fill
        fill(folder, source, progress)
        _write_manifest(folder, runtime, source, progress)
    return out


def _check_target(out: Path) -> None:
    if out.is_dir() and (not any(out.iterdir()) or PACKAGED in _manifest(out)):
        return
    if out.exists():
        raise BundleError(
            f"{out} exists and was not packaged by axcore",
            hint="choose a new or empty folder with -o; nothing was changed",
        )


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_manifest(folder: Path, runtime: Runtime, source: Source, progress: Progress) -> None:
    """Write the bundle's manifest with the files and checksums of this folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files: dict[str, Content] = {}
    with progress.task("checksums", sum(path.stat().st_size for path in paths), "B") as task:
        for path in paths:
            size = path.stat().st_size
            files[path.relative_to(folder).as_posix()] = Content(size, sha256(path))
            task.advance(size)
    manifest = replace(source.deployment.bundle.manifest, packaged_for=runtime, files=files)
    (folder / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
