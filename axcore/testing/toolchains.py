"""Run a toolchain on a folder, as `axcore build` runs it on a bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..choices import resolve
from ..pipeline.build import run_toolchain
from ..progress import Silent
from ..step import STATE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..language_model import Decoder
    from ..progress import Progress
    from ..toolchains.contract import BuildRequest, Toolchain


def build_folder(
    toolchain: Toolchain,
    folder: Path,
    request: BuildRequest,
    *,
    options: Mapping[str, str] | None = None,
    command: str | None = None,
    decoder: Decoder | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Build what lies in `folder`, without a conversion before it; steps are kept as in a bundle.

    Args:
        toolchain: What builds.
        folder: Holds the files that the toolchain reads.
        request: What a manifest would say; its options are those of the conversion.
        options: Options of this build; those of the conversion hold where none is given.
        command: How the tool is called, e.g. a stand-in for it.
        decoder: The language model's stages, for a toolchain that builds the layers itself.
        progress: Where messages go.

    Returns:
        The files made.

    Raises:
        AxcoreError: As `axcore.build` does.
    """
    chosen = resolve(
        f"toolchain `{toolchain.name}`", toolchain.options, {**request.options, **(options or {})}
    )
    toolchain.target(chosen)
    (folder / STATE).mkdir(exist_ok=True)

    def given() -> Decoder:
        assert decoder is not None, "this toolchain asks for the decoder: give it one"
        return decoder

    return run_toolchain(
        toolchain,
        folder,
        replace(request, options=chosen),
        converted=resolve("the conversion", toolchain.options, request.options),
        command=command,
        progress=progress or Silent(),
        decoder=given,
    )
