"""The protocol that toolchains implement, and the values they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ..component import Calibration, Port
from ..language_model import LlmBuildArgs

if TYPE_CHECKING:
    from ..availability import Availability
    from ..choices import Choice
    from ..graph.lint import Finding, OperatorTable
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
        after: Name of the component whose outputs that one takes; "" if it begins a chain. None in
            bundles of versions that knew one chain: the component before it.
    """

    stem: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calibration: Calibration
    archive: str
    samples: int
    build_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    component: str = ""
    after: str | None = None


@dataclass(frozen=True)
class BuildRequest:
    """Everything a toolchain needs to know of a bundle; stored in its manifest.

    Attributes:
        model: Id of the model.
        checkpoint: Folder the language model's builder reads: absolute, or below the bundle.
        options: The toolchain's options, each with its value.
        task: Name of the profile.
        graphs: The vision side.
        llm: The language model's build.
        decoder_layers: Number of decoder layers, to check that a build is complete.
    """

    model: str
    checkpoint: str
    options: Mapping[str, str]
    task: str
    graphs: tuple[GraphFile, ...]
    llm: LlmBuildArgs
    decoder_layers: int


@dataclass(frozen=True)
class Target:
    """A device that a toolchain builds for.

    Attributes:
        name: In the toolchain's spelling, e.g. ``AX650``.
        operators: What its compiler supports; None if no operator table is published. Then graphs
            are not checked, and users are told so once.
    """

    name: str
    operators: OperatorTable | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure of a board, foreseen before anything is built.

    Attributes:
        subject: What it is of, e.g. ``decoding``.
        value, unit: The figure; units are ``B``, ``s`` and ``tokens/s``.
        certainty: "exact" follows from the format, "estimate" from measurements of others.
        basis: Where it comes from and what limits it.
    """

    subject: str
    value: float
    unit: Literal["B", "s", "tokens/s"]
    certainty: Literal["exact", "estimate"]
    basis: str


@dataclass(frozen=True)
class Forecast:
    """What a toolchain foresees of a board; nothing in it was measured here.

    Attributes:
        estimates: The figures.
        notes: What a user should know before building, a line each.
    """

    estimates: tuple[Estimate, ...] = ()
    notes: tuple[str, ...] = ()


@runtime_checkable
class Forecaster(Protocol):
    """What a toolchain may have besides: it foresees what a board will need."""

    def forecast(
        self, request: BuildRequest, config: Mapping[str, Any], weight_bytes: Mapping[str, int]
    ) -> Forecast:
        """Return what is foreseen; called by `axcore plan`, reads no weights.

        Args:
            request: What would be built.
            config: The language model's part of ``config.json``.
            weight_bytes: Stem of each graph file to the bytes of its weights.
        """


class Build(Protocol):
    """A build of one bundle, as toolchains receive it.

    Attributes:
        folder: The bundle, absolute.
        request: What to build; its options are those of this build.
        converted: The options that the bundle's configuration files were written with; None if it
            was converted for another toolchain.
        command: How the tool is called; None for its usual name.
        progress: Where messages go.
    """

    @property
    def folder(self) -> Path: ...  # noqa: D102

    @property
    def request(self) -> BuildRequest: ...  # noqa: D102

    @property
    def converted(self) -> Mapping[str, str] | None: ...  # noqa: D102

    @property
    def command(self) -> str | None: ...  # noqa: D102

    @property
    def progress(self) -> Progress: ...  # noqa: D102

    def decoder(self) -> Decoder:
        """Open the checkpoint, and ask the family for the language model's stages.

        For a toolchain that builds the decoder layers itself.
        """

    def step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any] | None],
    ) -> list[Path]:
        """Return the files of a step; it runs only if its inputs have changed.

        Args:
            name: Fit for a folder name, unique in the build.
            inputs: Everything that the result depends on, JSON-like: commands, versions, options.
                A `Path` in it stands for the content of that file.
            make: Writes files into the empty folder that it is given. When it returns they are
                moved to the top of the bundle; when it raises they are dropped.
        """


class Toolchain(Protocol):
    """Turns a bundle into what a device runs."""

    @property
    def name(self) -> str:
        """The value of ``--toolchain``."""

    @property
    def options(self) -> Mapping[str, Choice]:
        """Its options, by name; `axcore convert`, `plan`, `lint` and `build` take them."""

    @property
    def targets(self) -> Mapping[str, Target]:
        """The devices that it builds for, by name; empty if they cannot be listed."""

    def target(self, options: Mapping[str, str]) -> Target:
        """Return the device that `options` name; called before any work is done.

        Args:
            options: Values of the options that were given or have a default.

        Raises:
            UsageError: There is no such device, or it cannot do what is asked.
        """

    def lint(self, graph: Path, target: Target) -> Sequence[Finding]:
        """Return what keeps `target` from running a graph; called if it has an operator table."""

    def availability(self, command: str | None = None) -> Availability:
        """Return whether the tool is installed; `command` overrides how it is called."""

    def checks(self) -> Mapping[str, Availability]:
        """Return further checks of this machine, by name, for `axcore doctor`."""

    def reads(self, request: BuildRequest, name: str) -> bool:
        """Return whether a build reads the file `name` of the bundle, which must then be unchanged.

        False for configuration files and scripts, which users may edit; a build that reads an
        edited one says so.
        """

    def prepare(self, request: BuildRequest) -> Mapping[str, str]:
        """Return configuration files and scripts for the bundle (name to text); runs no tool.

        A file whose text begins with ``#!`` is made executable.

        Raises:
            UsageError: An option does not fit the bundle.
        """

    def build(self, build: Build) -> None:
        """Run the tool, in steps that `build` keeps.

        Raises:
            UsageError: An option is missing, or does not fit the bundle.
            ToolchainError: The tool is missing or a step failed (message names the step).
        """
