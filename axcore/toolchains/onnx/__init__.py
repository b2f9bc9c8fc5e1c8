"""The embedded toolchain: the language model as ONNX layer models that keep the board's contract.

Nothing has to be installed. What it builds runs on a PC, through the loop that runs on a board.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...types import Availability

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ...progress import Progress
    from ...types import BuildRequest, Decoder

__all__ = ["Onnx"]


class Onnx:
    """Builds layer models; vision graphs are ONNX files already."""

    name = "onnx"

    def availability(self, command: str | None = None) -> Availability:
        """Say that it is here."""
        del command
        return Availability(True, "built in")

    def prepare(self, request: BuildRequest) -> dict[str, str]:
        """Return no file: there is no tool to configure."""
        del request
        return {}

    def build(
        self,
        bundle: Path,
        request: BuildRequest,
        progress: Progress,
        *,
        command: str | None = None,
        decoder: Callable[[], Decoder],
    ) -> list[Path]:
        """Write a file for every decoder layer, and one for norm and head.

        Args:
            bundle: Where they go.
            request: Lengths and precisions: hidden states "bf16" or "fp32", weights "bf16"
                (default), "fp32" or "s8" (a scale per output channel).
            progress: Told of the layers.
            command: Must be None: no tool is called.
            decoder: Opens the checkpoint and describes the language model.

        Raises:
            UsageError: A precision is unknown.
            UnsupportedModel: Layers of this kind are not built here.
        """
        from .build import build_layers

        del command
        return build_layers(bundle, request, decoder(), progress)
