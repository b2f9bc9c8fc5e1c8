"""Huawei Ascend: ``atc`` for the vision graphs of a bundle, and engines that run what it makes.

Importing it is cheap; the tool and the engines are loaded when they are used.
"""

from __future__ import annotations

import shlex
from types import MappingProxyType
from typing import TYPE_CHECKING

from axcore import Availability, ToolchainError, hookimpl

from .environment import environment
from .target import NAME, OPTIONS, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from axcore import BuildRequest, Decoder, Progress

    from .backend import AscendBackend

__all__ = ["Ascend", "backends", "environment", "toolchains"]

_NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class Ascend:
    """The toolchain for Ascend cards.

    Attributes:
        name: The value of ``--toolchain``.
        options: Its own options; a value is free where none are listed.
    """

    name = NAME
    options = OPTIONS

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

    def prepare(
        self, request: BuildRequest, options: Mapping[str, str] = _NO_OPTIONS
    ) -> dict[str, str]:
        """Return ``build_ascend.sh``; without a soc-version it asks for one when it runs.

        Raises:
            UsageError: An option's value is no good, or the card cannot do what is asked.
        """
        from .script import SCRIPT, build_script

        target = Target.of(options)
        target.check(request.graphs)
        return {SCRIPT: build_script(request, target)}

    def build(
        self,
        bundle: Path,
        request: BuildRequest,
        progress: Progress,
        *,
        command: str | None = None,
        decoder: Callable[[], Decoder] | None = None,
        options: Mapping[str, str] = _NO_OPTIONS,
    ) -> list[Path]:
        """Write ``build_ascend.sh``, convert every vision graph and return the ``.om`` files.

        What ``atc`` prints goes to `progress` as it comes, and into ``build/ascend/<stem>.log``.
        A graph converted by an earlier run is kept as long as the command, the version of CANN
        and the contents of the graph are the same.

        Args:
            bundle: Folder with the graphs.
            request: What to build.
            progress: Where messages go.
            command: What starts ``atc``, ``atc`` if None. A container must see the bundle as its
                working folder.
            decoder: Not used: torch runs the language model on the card.
            options: See `options`.

        Raises:
            UsageError: No soc-version is given, or an option's value is no good.
            ToolchainError: The tool or a graph is missing, or a step failed.
        """
        from axcore.files import write_atomic
        from axcore.toolchains.steps import Steps

        from .build import step_of
        from .commands import BUILD_FOLDER
        from .tool import find_tool

        del decoder
        folder, target = bundle.absolute(), Target.of(options).complete()
        for name, text in self.prepare(request, options).items():
            write_atomic(folder / name, text)
            (folder / name).chmod(0o755)
        tool = find_tool(command)
        steps = [step_of(folder, graph, target) for graph in request.graphs]
        return Steps(folder, BUILD_FOLDER, tool, progress).run(steps)


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
