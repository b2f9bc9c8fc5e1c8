"""Huawei Ascend: ``atc`` for the vision graphs of a bundle, and engines that run what it makes.

Importing it is cheap; the tool and the engines are loaded when they are used.
"""

from __future__ import annotations

import shlex
from types import MappingProxyType
from typing import TYPE_CHECKING

from axcore import Availability, ToolchainError, hookimpl

from .card import NAME, OPTIONS, Card
from .environment import environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from axcore.toolchain import Build, BuildRequest, Finding, Target

    from .backend import AscendBackend

__all__ = ["Ascend", "backends", "environment", "toolchains"]


class Ascend:
    """The toolchain for Ascend cards.

    Attributes:
        name: The value of ``--toolchain``.
        options: Its own options; one without listed values takes any.
        targets: None are listed: a card is named as ``npu-smi info`` prints it.
    """

    name = NAME
    options = OPTIONS
    targets: Mapping[str, Target] = MappingProxyType({})

    def target(self, options: Mapping[str, str]) -> Target:
        """Return the card; Huawei publishes no operator table that could be checked.

        Raises:
            UsageError: An option's value is no good.
        """
        from axcore.toolchain import Target  # it brings the lint, which discovery does without

        return Target(Card.of(options).soc_version or "Ascend")

    def lint(self, graph: Path, target: Target) -> list[Finding]:
        """Find nothing."""
        del graph, target
        return []

    def availability(self, command: str | None = None) -> Availability:
        """Say whether ``atc`` is here; `command` replaces it and may be several words."""
        from .tool import find_tool

        try:
            tool = find_tool(command)
        except ToolchainError as error:
            return Availability(False, error.message, error.hint)
        return Availability(True, " ".join([shlex.join(tool.words), *tool.version]))

    def checks(self) -> Mapping[str, Availability]:
        """Return what else matters on this machine, by name: the engines, and the environment."""
        from .checks import checks

        return checks()

    def reads(self, request: BuildRequest, name: str) -> bool:
        """Say yes of graphs and their weights."""
        return any(
            name in (f"{graph.stem}.onnx", f"{graph.stem}.onnx.data") for graph in request.graphs
        )

    def prepare(self, request: BuildRequest) -> dict[str, str]:
        """Return ``build_ascend.sh``; without a soc-version it asks for one when it runs.

        Raises:
            UsageError: The card cannot do what is asked.
        """
        from .script import SCRIPT, build_script

        card = Card.of(request.options)
        card.check(request.graphs)
        return {SCRIPT: build_script(request, card)}

    def build(self, build: Build) -> None:
        """Convert every vision graph into an ``.om`` file.

        What ``atc`` prints goes to the progress as it comes, and into ``build/ascend/<stem>.log``.
        A graph is converted again when the command, the version of CANN or the content of the graph
        has changed. A container must see the bundle as its working folder.

        Raises:
            UsageError: No soc-version is given, or an option's value is no good.
            ToolchainError: The tool or a graph is missing, or a step failed.
        """
        from axcore.toolchain import run_tool

        from .commands import BUILD_FOLDER, run_of
        from .tool import find_tool

        card = Card.of(build.request.options).complete()
        card.check(build.request.graphs)
        tool = find_tool(build.command)
        runs = [run_of(build.folder, graph, card) for graph in build.request.graphs]
        run_tool(build, tool, runs, BUILD_FOLDER)


@hookimpl
def toolchains() -> list[Ascend]:
    """Register the toolchain."""
    return [Ascend()]


@hookimpl
def backends() -> list[AscendBackend]:
    """Register what runs bundles on a card: OM files, or ONNX files through CANN's provider."""
    from .backend import OPTIONS as RUN_OPTIONS
    from .backend import PROVIDER_OPTIONS, AscendBackend

    provider = {**RUN_OPTIONS, **PROVIDER_OPTIONS}
    return [
        AscendBackend("ascend", f"{__name__}.om", ".om", "ais_bench", RUN_OPTIONS),
        AscendBackend("ascend-onnx", f"{__name__}.cann", ".onnx", "onnxruntime-cann", provider),
    ]
