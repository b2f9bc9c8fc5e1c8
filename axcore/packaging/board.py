"""`package`: write the folder that a runtime on a board expects, completely or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..bundle import MANIFEST
from ..errors import UsageError
from ..files import Content, appearing, explained_full_disk, sha256
from .sbom import SBOM, sbom
from .source import Source
from .target import Runtime, check_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..plugins import Registry
    from ..progress import Progress

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def package(
    bundle: Path,
    out: Path,
    runtime: Runtime,
    registry: Registry,
    progress: Progress,
    *,
    accept_faults: bool = False,
) -> Path:
    """Package a built bundle for a board, and return `out`.

    Files are copies, which share their blocks with the originals where the file system can do that.

    Args:
        bundle: A folder filled by `convert` and `build`.
        out: The new folder, or a link to it. A folder packaged earlier is replaced if it holds
            nothing else, as it was written.
        runtime: "axllm" for Axera's ``axllm``, "python" for the loop of `axcore.runtime`.
        accept_faults: Whether results of the build that do not hold are warned of, not refused.

    Raises:
        UsageError: There is no such runtime.
        PluginNotFound: No installed plugin knows the model.
        BundleError: The bundle is not built, incomplete or changed, its build does not hold, or
            `out` holds other files.
        BudgetError: The disk has no room for the folder.
        UnsupportedModel: The runtime cannot run this model.
        AxcoreError: A subclass says what is wrong; `out` is unchanged.
    """
    if runtime not in RUNTIMES:
        raise UsageError(
            f"there is no runtime `{runtime}`", hint=f"choose --runtime from {', '.join(RUNTIMES)}"
        )
    source = Source.open(bundle, registry)
    source.check_results(accept_faults, progress)
    place = Path(os.path.realpath(out))
    with explained_full_disk(place.parent):
        check_target(place, progress)
    with explained_full_disk(place.parent), appearing(place, durable=True) as folder:
        folder.mkdir()
        if runtime == "axllm":
            from .axllm import fill
        else:
            from .python import fill
        libraries = fill(folder, source, progress)
        files = _contents(folder, progress)
        text = sbom(source, runtime, libraries, files)
        (folder / SBOM).write_text(text, encoding="utf-8")
        files[SBOM] = Content(len(text.encode()), sha256(folder / SBOM))
        _write_manifest(folder, runtime, source, files)
        check_target(place)  # somebody may have written there in the meantime
    return out


def _contents(folder: Path, progress: Progress) -> dict[str, Content]:
    """Return the content of every file below `folder`, by its name there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files: dict[str, Content] = {}
    with progress.task("checksums", sum(path.stat().st_size for path in paths), "B") as task:
        for path in paths:
            content = Content(path.stat().st_size, sha256(path))
            files[path.relative_to(folder).as_posix()] = content
            task.advance(content.size)
    return files


def _write_manifest(
    folder: Path, runtime: Runtime, source: Source, files: Mapping[str, Content]
) -> None:
    """Write the bundle's manifest with the files and checksums of this folder."""
    listed = dict(sorted(files.items()))
    manifest = replace(source.deployment.bundle.manifest, packaged_for=runtime, files=listed)
    (folder / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
