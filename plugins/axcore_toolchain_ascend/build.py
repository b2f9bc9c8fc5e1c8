"""The steps of a bundle: one per vision graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axcore.toolchains.steps import Step, graph_files

from .commands import atc_flags, om_file

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import GraphFile

    from .target import Target


def step_of(bundle: Path, graph: GraphFile, target: Target) -> Step:
    """Return the run of ``atc`` that converts `graph`.

    Raises:
        ToolchainError: The graph is missing.
    """
    return Step(
        name=graph.stem,
        arguments=atc_flags(graph, target),
        inputs=graph_files(bundle, graph),
        # atc adds the system to the name of a model that holds code for the host.
        promised=lambda _: {om_file(graph): "*.om"},
    )
