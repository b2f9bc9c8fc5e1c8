"""Finding Pulsar2 and asking it what it is."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import ToolchainError
from ..tool import Tool
from .commands import GENERATIONS, Generation
from .failures import explain

if TYPE_CHECKING:
    from pathlib import Path

NAME = "Pulsar2"
_REMEDY = (
    "install Pulsar2 and put it on PATH, or say what starts it: "
    '--tool "docker run --rm --init -v FOLDER:FOLDER -w FOLDER IMAGE pulsar2"'
)


def find_tool(command: str | None) -> Tool:
    """Look for ``pulsar2``, or for what `command` names in a shell's quoting.

    Raises:
        ToolchainError: It is no program here.
    """
    tool = Tool.find(NAME, command or "pulsar2", remedy=_REMEDY)
    return replace(tool, alone=True, explain=explain)  # two at once left broken models


def probe(tool: Tool, folder: Path) -> tuple[Tool, Generation]:
    """Ask the tool what it is, from inside `folder`: its version and language-model builder.

    Raises:
        ToolchainError: It cannot be started, or has no language-model builder.
    """
    generation = _generation(tool, folder)
    said = tool.ask("version", folder=folder).stdout
    version = re.findall(r"^(?:version|commit): *\S{1,100}", said, re.MULTILINE)
    return replace(tool, version=tuple(version)), generation


def _generation(tool: Tool, folder: Path) -> Generation:
    for name, mark in GENERATIONS.items():
        asked = tool.ask(name, "-h", folder=folder)
        # A wrapper may print its general help, with success, for a name it does not know.
        if asked.returncode == 0 and mark in asked.stdout:
            return name
    raise ToolchainError(
        f"`{shlex.join(tool.words)}` has no language-model builder\n"
        f"  tried: {', '.join(f'{name} -h' for name in GENERATIONS)}\n"
        f"  the last said: {asked.stdout.strip()[-300:] or 'nothing'}",
        hint="check that the command starts Pulsar2 3.2 or later",
    )
