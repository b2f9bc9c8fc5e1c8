"""The runs of ``atc`` for a bundle: one per vision graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axcore.toolchain import Run, graph_files

from .commands import atc_flags, om_file

if TYPE_CHECKING:
    from pathlib import Path

    from axcore.toolchain import GraphFile

    from .card import Card


def run_of(bundle: Path, graph: GraphFile, card: Card) -> Run:
    """Return the run of ``atc`` that converts `graph`.

    Raises:
        ToolchainError: The graph is missing.
    """
    return Run(
        name=graph.stem,
        arguments=atc_flags(graph, card),
        inputs=graph_files(bundle, graph),
        # atc adds the system to the name of a model that holds code for the host.
        promised=lambda _: {om_file(graph): "*.om"},
    )
