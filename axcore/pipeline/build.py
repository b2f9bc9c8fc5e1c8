"""Building a bundle with a toolchain, in steps of the bundle's workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import resolve
from ..errors import ContractError, UsageError
from ..files import explained_full_disk
from ..language_model import Decoder
from ..workspace import Workspace
from .job import find_toolchain, open_job, request_of

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..plugins import Registry
    from ..progress import Progress
    from ..toolchains.contract import BuildRequest, Toolchain
    from ..workspace import Make


def build_bundle(
    bundle: Bundle,
    name: str | None,
    command: str | None,
    options: Mapping[str, str],
    registry: Registry,
    progress: Progress,
) -> list[Path]:
    """Run a toolchain on `bundle`; finished steps are not repeated.

    Args:
        bundle: What is built.
        name: The toolchain; None takes the one that the bundle was converted for.
        command: How the tool is called; None for its usual name.
        options: Options of the toolchain; those of the conversion hold where none is given.
        registry: The plugins.
        progress: Where to report.

    Returns:
        The files made.

    Raises:
        UsageError: There is no such toolchain or option.
        AxcoreError: Another subclass says what is wrong.
    """
    toolchain = find_toolchain(registry, name or bundle.manifest["toolchain"])
    own = toolchain.name == bundle.manifest["toolchain"]
    request, converted = bundle.build_request, bundle.build_request.options if own else None
    chosen = resolve(
        f"toolchain `{toolchain.name}`", toolchain.options, {**(converted or {}), **options}
    )
    toolchain.target(chosen)
    bundle.check_files({file for file in bundle.files if toolchain.reads(request, file)})
    return run_toolchain(
        toolchain,
        bundle.folder,
        replace(request, options=chosen),
        converted=converted,
        command=command,
        progress=progress,
        decoder=partial(open_decoder, bundle, registry, progress),
    )


def run_toolchain(
    toolchain: Toolchain,
    folder: Path,
    request: BuildRequest,
    *,
    converted: Mapping[str, str] | None = None,
    command: str | None = None,
    progress: Progress,
    decoder: Callable[[], Decoder],
) -> list[Path]:
    """Run `toolchain` in `folder`, see `Build`; return the files made."""
    workspace = Workspace(folder, request.model, f"build-{toolchain.name}")
    build = _Build(folder.absolute(), request, converted, command, progress, decoder, workspace)
    with workspace.locked(), explained_full_disk(folder, "finished steps"):
        toolchain.build(build)
        workspace.publish()
    return [folder / name for step in workspace.steps for name in step.files]


@dataclass(frozen=True)
class _Build:
    """A `Build` whose steps are those of a workspace."""

    folder: Path
    request: BuildRequest
    converted: Mapping[str, str] | None
    command: str | None
    progress: Progress
    decoder: Callable[[], Decoder]
    workspace: Workspace

    def step(self, name: str, inputs: Mapping[str, Any], make: Make) -> list[Path]:
        """See `Build.step`."""
        step = self.workspace.run(name, inputs, make)
        if step.reused:
            self.progress.say(f"{name}: already built")
        for file in self.workspace.put(step):
            self.progress.warn(f"{file} had been changed; your version is kept as {file}.orig")
        return [self.folder / file for file in step.files]


def open_decoder(bundle: Bundle, registry: Registry, progress: Progress) -> Decoder:
    """Open the checkpoint that a bundle was made from, and ask its family for the stages.

    Raises:
        UsageError: The bundle holds the vision side alone.
        ContractError: The plugin's answer is unfit (names plugin and hook).
        AxcoreError: Another subclass says what is wrong with the checkpoint.
    """
    from ..graph.contract import check_stages

    request = request_of(bundle)
    if request.vision_only:
        raise UsageError(
            f"{bundle.folder} holds the vision side alone",
            hint="convert again without --vision-only",
        )
    job = open_job(request, registry, progress)
    decoder = registry.call(job.family, "decoder", job=job)
    with registry.blame(job.family, "decoder"):
        if not isinstance(decoder, Decoder):
            raise ContractError(f"returned {decoder!r}, not a Decoder")
        check_stages("the language model", [*decoder.layers, decoder.head], decoder.checkpoint)
    return decoder
