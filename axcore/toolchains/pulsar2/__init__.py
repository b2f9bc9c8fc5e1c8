"""Axera's Pulsar2: ``pulsar2 build`` for graphs, ``llm_build`` or ``llm_build2`` for the rest.

Importing it is cheap; configuration types and the runner are loaded when they are used.
"""

from __future__ import annotations

import shlex
from types import MappingProxyType
from typing import TYPE_CHECKING

from ...availability import Availability
from ...errors import ToolchainError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ...choices import Choice
    from ...language_model import Decoder
    from ...progress import Progress
    from ..contract import BuildRequest

__all__ = ["Pulsar2"]

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Pulsar2:
    """The toolchain for Axera chips."""

    name = "pulsar2"
    options: Mapping[str, Choice] = MappingProxyType({})

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

    def prepare(
        self, request: BuildRequest, options: Mapping[str, str] = _NOTHING
    ) -> dict[str, str]:
        """Return ``<stem>.pulsar2.json`` for every graph, and ``build.sh``.

        Raises:
            UsageError: Pulsar2 has no such chip or mode.
            ContractError: What a component says does not fit the configuration schema.
        """
        del options
        from .commands import config_file
        from .config import config_for
        from .script import build_script
        from .target import check_target

        check_target(request.chip, request.npu_mode)
        files = {
            config_file(graph): config_for(graph, request).to_json() for graph in request.graphs
        }
        return {**files, "build.sh": build_script(request)}

    def build(
        self,
        bundle: Path,
        request: BuildRequest,
        progress: Progress,
        *,
        command: str | None = None,
        options: Mapping[str, str] = _NOTHING,
        decoder: Callable[[], Decoder] | None = None,
    ) -> list[Path]:
        """Build every graph and the language model; return the ``.axmodel`` files.

        What the tool prints goes to `progress` as it comes, and into ``build/<step>.log``. A step
        finished by an earlier run is kept as long as its command, the tool's version and the
        contents of the files it reads are the same.

        Args:
            bundle: Folder with graphs, configurations and calibration archives.
            request: What to build.
            progress: Where messages go.
            command: What starts Pulsar2, ``pulsar2`` if None. A container must see the bundle,
                as its working folder, and the checkpoint under the paths they have here.
            options: None are known.
            decoder: Not used: Pulsar2 reads the checkpoint itself.

        Raises:
            ToolchainError: The tool or a file it needs is missing, or a step failed.
        """
        from ..steps import Steps
        from .build import steps_of
        from .commands import BUILD_FOLDER
        from .tool import find_tool, probe

        del decoder, options
        folder = bundle.absolute()
        tool, generation = probe(find_tool(command), folder)
        progress.say(f"Pulsar2 {', '.join(tool.version)} ({generation})".replace("  ", " "))
        steps = steps_of(folder, request, generation)
        for note in request.llm.notes:
            progress.warn(note)
        return Steps(folder, BUILD_FOLDER, tool, progress).run(steps)
