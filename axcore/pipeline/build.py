"""Building a bundle with a toolchain, in steps of the bundle's workspace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint
from ..choices import resolve
from ..errors import BundleError, CheckpointError, ContractError, UsageError
from ..files import explained_full_disk
from ..language_model import Decoder
from ..step import BUILD
from ..workspace import Workspace
from .job import find_toolchain, open_job, request_of, vision_key
from .prepared import check_tables

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
    manifest = bundle.manifest
    toolchain = find_toolchain(registry, name or manifest.toolchain)
    own = toolchain.name == manifest.toolchain
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
        check=_Reads(bundle, toolchain, registry, progress).check,
    )


@dataclass(frozen=True)
class _Reads:
    """Compares what a build reads with what the conversion wrote, or was made from."""

    bundle: Bundle
    toolchain: Toolchain
    registry: Registry
    progress: Progress

    def check(self, paths: Collection[Path]) -> None:
        """Refuse or announce what is not as it was.

        A file that the toolchain declares to read must be unchanged. Any other, such as a
        configuration, may have been edited: that is said. One that the manifest does not list is
        nobody's.

        Raises:
            BundleError: A file is not the conversion's.
            CheckpointError: The checkpoint has other weights than the bundle was made from.
        """
        folder, request = self.bundle.folder.absolute(), self.bundle.build_request
        for path in paths:
            if path.is_relative_to(folder):
                self._check_file(path.relative_to(folder).as_posix())
        checkpoint = Path(request.checkpoint)
        if checkpoint.is_absolute() and any(path.is_relative_to(checkpoint) for path in paths):
            self._check_weights(checkpoint)

    def _check_file(self, name: str) -> None:
        listed, folder = self.bundle.manifest.files, self.bundle.folder
        if name in self.bundle.built:
            return
        if name not in listed:
            raise BundleError(
                f"the build reads {folder / name}, which `axcore convert` did not write",
                hint="remove it; `axcore convert` writes all that a build needs",
            )
        try:
            self.bundle.check_files({name})
        except BundleError:
            if self.toolchain.reads(self.bundle.build_request, name):
                raise
            self.progress.warn(
                f"{name} is not as `axcore convert` wrote it, and is built from as it is; the same"
                f" `axcore convert` writes it anew, and keeps yours as {name}.orig"
            )

    def _check_weights(self, folder: Path) -> None:
        manifest = self.bundle.manifest
        card = self.registry.of_bundle(manifest.model).card
        wanted = vision_key(card) if manifest.vision_only else None
        with Checkpoint.open(folder, card.layout.prefixes, wanted) as checkpoint:
            if manifest.checkpoint.fingerprint not in ("", checkpoint.fingerprint()):
                raise other_weights(self.bundle, folder)


def other_weights(bundle: Bundle, folder: Path) -> CheckpointError:
    """Return what to raise where a checkpoint is no longer that of its bundle."""
    return CheckpointError(
        f"the checkpoint has changed since {bundle.folder} was made from it\n  folder: {folder}",
        hint="run the same `axcore convert` again, and then build",
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
    check: Callable[[Collection[Path]], None] = lambda _: None,
) -> list[Path]:
    """Run `toolchain` in `folder`, see `Build`; return the files made.

    `check` is given what each step reads, before it runs.
    """
    workspace = Workspace(folder, request.model, f"{BUILD}{toolchain.name}")
    build = _Build(
        folder.absolute(), request, converted, command, progress, decoder, workspace, check
    )
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
    check: Callable[[Collection[Path]], None]

    def step(self, name: str, inputs: Mapping[str, Any], make: Make) -> list[Path]:
        """See `Build.step`."""
        self.check(list(_paths(inputs)))
        step = self.workspace.run(name, inputs, make)
        if step.reused:
            self.progress.say(f"{name}: already built")
        for file, kept in self.workspace.put(step).items():
            self.progress.warn(f"{file} had been changed; your version is kept as {kept}")
        return [self.folder / file for file in step.files]


def _paths(value: Any) -> Iterator[Path]:
    """Yield the paths in the inputs of a step."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _paths(inner)


def open_decoder(bundle: Bundle, registry: Registry, progress: Progress) -> Decoder:
    """Open the checkpoint that a bundle was made from, and ask its family for the stages.

    Raises:
        UsageError: The bundle holds the vision side alone.
        CheckpointError: The checkpoint has other weights than the bundle was made from.
        ContractError: The plugin's answer is unfit (names plugin and hook).
        AxcoreError: Another subclass says what is wrong with the checkpoint.
    """
    from ..graph.contract import check_decoder

    request = request_of(bundle, registry)
    if request.vision_only:
        raise UsageError(
            f"{bundle.folder} holds the vision side alone",
            hint="convert again without --vision-only",
        )
    job = open_job(request, registry, progress)
    if bundle.manifest.checkpoint.fingerprint not in ("", job.checkpoint.fingerprint()):
        raise other_weights(bundle, job.checkpoint.folder)
    found = registry.call(job.family, "embed_extract", job=job)
    with registry.blame(job.family, "embed_extract"):
        embedding, *_ = check_tables(found, job)
    decoder = registry.call(job.family, "decoder", job=job, embedding=embedding)
    with registry.blame(job.family, "decoder"):
        if not isinstance(decoder, Decoder):
            raise ContractError(f"returned {decoder!r}, not a Decoder")
        check_decoder(decoder, bundle.manifest.tables)
    return decoder
