"""What a compiled vision model takes in place of its graph's input: the pixels, as uint8.

Pulsar2 compiles the conversion into the model, as the configuration beside the graph says; an ONNX
graph takes normalised float32. Scripts for a board feed the pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import MANIFEST, Bundle

if TYPE_CHECKING:
    from pathlib import Path

    from ..component import Calibration
    from .engine import Node

    Array = np.ndarray[Any, Any]


class Pixels:
    """The input of a vision graph that is fed with pixels on a board.

    Args:
        name: Name of the input.
        calibration: How pixels become the graph's input.
    """

    def __init__(self, name: str, calibration: Calibration) -> None:
        self._name, self._calibration = name, calibration

    def fill(self, node: Node) -> bool:
        """Whether a board is fed with pixels where the graph has the input `node`."""
        return node.name == self._name and node.dtype != np.uint8

    def graph_input(self, node: Node, pixels: Array) -> Array:
        """Return what the input `node` of the graph takes for uint8 ``[1, H, W, 3]``."""
        return self._calibration.graph_input(pixels[0]).astype(node.dtype)


def pixels_of(graph: Path) -> Pixels | None:
    """Return what the bundle beside `graph` says of it; None if the graph's own input is fed.

    Raises:
        BundleError: The bundle's manifest cannot be read.
    """
    if not (graph.parent / MANIFEST).is_file():
        return None
    for part in Bundle.open(graph.parent).build_request.graphs:
        asked = part.calibration
        if (part.stem, asked.format, asked.src_dtype, asked.src_layout) == (
            graph.stem, "Image", "U8", "NHWC",
        ) and not asked.src_normalised:  # fmt: skip
            return Pixels(part.inputs[0].name, asked)
    return None
