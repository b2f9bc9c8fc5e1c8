"""What a toolchain is, and what it is told of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..component import Calibration, Port
from ..language_model import LlmBuildArgs

if TYPE_CHECKING:
    from ..availability import Availability
    from ..choices import Choice
    from ..language_model import Decoder
    from ..progress import Progress


@dataclass(frozen=True)
class GraphFile:
    """An exported ONNX file as a toolchain sees it.

    Attributes:
        stem: File name without suffix.
        inputs, outputs: Its ports.
        calibration: How its samples are stored.
        archive: Name of the calibration archive, relative to the bundle.
        samples: Number of samples in the archive; 0 where none was made.
        build_options: See `Component.build_options`.
        component: Name of the component it belongs to.
    """

    stem: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calibration: Calibration
    archive: str
    samples: int
    build_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    component: str = ""


@dataclass(frozen=True)
class BuildRequest:
    """Everything a toolchain needs to know of a bundle; stored in its manifest.

    Attributes:
        model: Id of the model.
        checkpoint: Folder the language model's builder reads: absolute, or below the bundle.
        chip, npu_mode: Target.
        task: Name of the profile.
        graphs: The vision side.
        llm: The language model's build.
        decoder_layers: Number of decoder layers, so that a finished build can be told.
    """

    model: str
    checkpoint: str
    chip: str
    npu_mode: str
    task: str
    graphs: tuple[GraphFile, ...]
    llm: LlmBuildArgs
    decoder_layers: int


class Toolchain(Protocol):
    """Turns a bundle into what a device runs."""

    @property
    def name(self) -> str:
        """The value of ``--toolchain``."""

    @property
    def options(self) -> Mapping[str, Choice]:
        """Options of its builds, by name."""

    def availability(self, command: str | None = None) -> Availability:
        """Say whether the tool is here; `command` overrides how it is called."""

    def checks(self) -> Mapping[str, Availability]:
        """Return what else matters on this machine, by name, for `axcore doctor`."""

    def reads(self, request: BuildRequest, name: str) -> bool:
        """Say whether a build reads that file of the bundle, which must then be as written.

        Configurations and scripts are there to be edited: of those it says no.
        """

    def prepare(self, request: BuildRequest, options: Mapping[str, str] = ...) -> Mapping[str, str]:
        """Return configuration files and scripts for the bundle (name to text); runs no tool.

        A file whose text begins with ``#!`` is made executable. A conversion gives no `options`;
        they come with the build.
        """

    def build(
        self,
        bundle: Path,
        request: BuildRequest,
        progress: Progress,
        *,
        command: str | None = None,
        options: Mapping[str, str] = ...,
        decoder: Callable[[], Decoder],
    ) -> list[Path]:
        """Run the tool on `bundle` and return the files made; finished steps are not repeated.

        Args:
            bundle: Folder with graphs, configurations and calibration archives.
            request: What to build.
            progress: Where messages go.
            command: How the tool is called; None for its usual name.
            options: Of those that it declares: what was given, and defaults.
            decoder: Opens the checkpoint and asks the family for the language model's stages, for
                a toolchain that builds the layers itself.

        Raises:
            UsageError: An option is missing, or does not fit the bundle.
            ToolchainError: The tool is missing or a step failed (message names the step).
        """
