"""The embedded toolchain: the language model as ONNX layer models that keep the board's contract.

Nothing has to be installed. What it builds runs on a PC, through the loop that runs on a board.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from ...availability import Availability
from ...choices import Choice, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ...language_model import Decoder
    from ...progress import Progress
    from ..contract import BuildRequest

__all__ = ["Onnx"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
_OPTIONS: Mapping[str, Choice] = MappingProxyType(
    {
        "weight-type": Choice(
            ("bf16", "fp32", "s8"),
            "how weights are stored: as published, in float32, or in 8 bits with a scale per"
            " output channel, as boards do. They become float32 when a file is loaded",
        ),
        "hidden-state-type": Choice(
            ("bf16", "fp32"), "how states and caches are passed: as on boards, or without rounding"
        ),
        "dynamic-batch": Choice(
            ("no", "yes"), "whether several prompts may be run at once, which no board can do"
        ),
    }
)


class Onnx:
    """Builds layer models; vision graphs are ONNX files already."""

    name = "onnx"
    options = _OPTIONS

    def availability(self, command: str | None = None) -> Availability:
        """Say that it is here."""
        del command
        return Availability(True, "built in")

    def checks(self) -> dict[str, Availability]:
        """Return nothing: all that it needs is installed with axcore."""
        return {}

    def reads(self, request: BuildRequest, name: str) -> bool:
        """Say that it reads nothing of the bundle: weights come from the checkpoint."""
        del request, name
        return False

    def prepare(
        self, request: BuildRequest, options: Mapping[str, str] = _NOTHING
    ) -> dict[str, str]:
        """Return no file: there is no tool to configure."""
        del request, options
        return {}

    def build(
        self,
        bundle: Path,
        request: BuildRequest,
        progress: Progress,
        *,
        command: str | None = None,
        options: Mapping[str, str] = _NOTHING,
        decoder: Callable[[], Decoder],
    ) -> list[Path]:
        """Write a file for every decoder layer, and one for norm and head.

        Args:
            bundle: Where they go.
            request: What to build: its lengths.
            progress: Told of the layers.
            command: Not used: no tool is called.
            options: See `options`.
            decoder: Opens the checkpoint and describes the language model.

        Raises:
            UnsupportedModel: Layers of this kind are not built here.
        """
        from .build import build_layers
        from .precision import Precision

        del command
        chosen = resolve(f"toolchain `{self.name}`", self.options, options)
        precision = Precision(chosen["hidden-state-type"], chosen["weight-type"])
        free = chosen["dynamic-batch"] == "yes"
        return build_layers(bundle, request, decoder(), precision, progress, dynamic_batch=free)
