"""Axera's Pulsar2: ``pulsar2 build`` for graphs, ``llm_build`` or ``llm_build2`` for the rest.

Importing it is cheap; configuration types and the runner are loaded when they are used.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...availability import Availability
from ...errors import ToolchainError, UsageError
from .chips import NPU_MODES, OPTIONS, Chip, check_options, chip_target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ...graph.lint import Finding
    from ..contract import Build, BuildRequest, Forecast, Target

__all__ = ["Pulsar2"]


class Pulsar2:
    """The toolchain for Axera chips."""

    name = "pulsar2"
    options = OPTIONS

    @property
    def targets(self) -> dict[str, Target]:
        """The chips, those with a published operator table with it."""
        return {chip: chip_target(chip) for chip in NPU_MODES}

    def target(self, options: Mapping[str, str]) -> Target:
        """Return the chip.

        Raises:
            UsageError: Pulsar2 has no such chip, the chip has no such NPU mode, or another option
                does not take its value.
        """
        check_options(options)
        return chip_target(Chip.of(options).name)

    def lint(self, graph: Path, target: Target) -> list[Finding]:
        """Check a graph against the chip's operator table."""
        from ...graph.lint import lint_model

        return lint_model(graph, target.operators) if target.operators else []

    def availability(self, command: str | None = None) -> Availability:
        """Say whether Pulsar2 is here; `command` replaces ``pulsar2`` and may be several words."""
        from .tool import find_tool

        try:
            tool = find_tool(command)
        except ToolchainError as error:
            return Availability(False, error.message, error.hint)
        return Availability(True, shlex.join(tool.words))

    def checks(self) -> dict[str, Availability]:
        """Return nothing: the tool is all that it needs."""
        return {}

    def reads(self, request: BuildRequest, name: str) -> bool:
        """Say yes of graphs, archives, and a checkpoint that was written for the builder."""
        if name.startswith(f"{request.checkpoint}/"):
            return True
        return any(
            name in (f"{graph.stem}.onnx", f"{graph.stem}.onnx.data", graph.archive)
            for graph in request.graphs
        )

    def prepare(self, request: BuildRequest) -> dict[str, str]:
        """Return ``<stem>.pulsar2.json`` for every graph, and ``build.sh``.

        Raises:
            UsageError: Pulsar2 has no such chip or mode.
            ContractError: What a component says does not fit the configuration schema.
        """
        from .commands import config_file
        from .config import config_for
        from .script import build_script

        files = {
            config_file(graph): config_for(graph, request).to_json() for graph in request.graphs
        }
        return {**files, "build.sh": build_script(request)}

    def forecast(
        self, request: BuildRequest, config: Mapping[str, Any], weight_bytes: Mapping[str, int]
    ) -> Forecast:
        """Return bytes, memory, times and speed of the language model on the chip."""
        from .config import config_for
        from .forecast import forecast
        from .remarks import remarks

        foreseen = forecast(request, config, weight_bytes)
        said = [
            f"{graph.stem}: {line}"
            for graph in request.graphs
            for line in remarks(config_for(graph, request))
        ]
        return replace(foreseen, notes=(*foreseen.notes, *said))

    def build(self, build: Build) -> None:
        """Build every graph and the language model into ``.axmodel`` files.

        What the tool prints goes to the progress as it comes, and into ``build/<step>.log``. A step
        is done again when its command, the tool's version or the content of a file it reads has
        changed. A container must see the bundle, as its working folder, and the checkpoint under
        the paths they have here. What a graph came to is read from what the tool left, kept as
        ``<stem>.build.json``, and shown in a table at the end.

        Raises:
            UsageError: The bundle was converted for another chip or mode.
            ToolchainError: The tool or a file it needs is missing, a step failed, or a result does
                not hold and the option ``accept-faults`` does not say that it may.
        """
        from ..tool import run_tool
        from .build import check_results, runs_of
        from .commands import BUILD_FOLDER, config_file
        from .remarks import remarks_on
        from .tool import find_tool, probe

        _check_converted(build)
        for graph in build.request.graphs:
            for line in remarks_on(build.folder / config_file(graph)):
                build.progress.warn(f"{config_file(graph)}: {line}")
        tool, generation = probe(find_tool(build.command), build.folder)
        version = " ".join(tool.version)
        build.progress.say(f"Pulsar2 {version} ({generation})".replace("  ", " "))
        runs = runs_of(build.folder, build.request, generation, build.progress)
        for note in build.request.llm.notes:
            build.progress.warn(note)
        check_results(run_tool(build, tool, runs, BUILD_FOLDER), build.request, build.progress)


def _check_converted(build: Build) -> None:
    """Refuse another chip than that of the configuration files, which may have been edited."""
    if build.converted is None:
        return
    before, now = Chip.of(build.converted), Chip.of(build.request.options)
    if before != now:
        raise UsageError(
            f"{build.folder} was converted for {' '.join(before)}, not for {' '.join(now)}",
            hint=f"run the same `axcore convert` with --chip {now.name} --npu-mode {now.npu_mode}:"
            " exported graphs are kept",
        )
