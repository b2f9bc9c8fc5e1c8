"""The runs of ``atc``, one per vision graph; paths are relative to the bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore.toolchain import Run, graph_files

from .card import NAME

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import GraphFile, Port

    from .card import Card

BUILD_FOLDER = f"build/{NAME}"
_ONNX = "5"  # atc's number of the framework


def om_file(graph: GraphFile) -> str:
    """Name of what `graph` becomes."""
    return f"{graph.stem}.om"


def output_folder(graph: GraphFile) -> str:
    """Folder that ``atc`` writes into."""
    return f"{BUILD_FOLDER}/{graph.stem}"


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


def atc_flags(graph: GraphFile, card: Card) -> list[str]:
    """Return what follows ``atc`` to convert `graph`.

    The graph's own ``build_options["ascend"]`` are laid over: None takes a flag out, anything else
    sets it.
    """
    flags: dict[str, Any] = {
        "framework": _ONNX,
        "model": f"{graph.stem}.onnx",
        "output": f"{output_folder(graph)}/{graph.stem}",
        "input_format": "ND",
        "input_shape": ";".join(map(_shape, graph.inputs)),
        "soc_version": card.soc_version,
        "precision_mode_v2": card.precision_mode,
        "log": "error",
    }
    flags.update(graph.build_options.get(NAME, {}))
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def _shape(port: Port) -> str:
    return f"{port.name}:{','.join(map(str, port.shape))}"
