"""The embedded toolchain: the language model as ONNX layer models that keep the board's contract.

Nothing has to be installed. What it builds runs on a PC, through the loop that runs on a board.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from ...availability import Availability
from ...choices import Choice
from ..contract import Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ...graph.lint import Finding
    from ..contract import Build, BuildRequest

__all__ = ["Onnx"]

_HERE = Target("ONNX Runtime")
_OPTIONS: Mapping[str, Choice] = MappingProxyType(
    {
        "weight-type": Choice(
            (),
            "how matrices are stored: s8 or s4 with a scale per row as on boards, bf16, fp16,"
            " fp8_e4m3, fp8_e5m2 or fp32; the head is s8 on every board, and here unless fp32 is"
            " chosen. Default: that of the build request, usually s8. s8 and s4 take a byte a"
            " weight in memory, all others become float32 when a file is loaded",
        ),
        "weight-rule": Choice(
            (),
            "how rows become integers: absmax (scale max / 127) or signed (-largest / 128);"
            " default: signed for Llama, absmax for others, as builds were seen to do",
        ),
        "hidden-state-type": Choice(
            ("bf16", "fp32"), "how states and caches are passed: as on boards, or without rounding"
        ),
        "round-inside": Choice(
            ("no", "yes"),
            "whether states are rounded between the operators of a layer too, which is nearer to a"
            " board and slower",
        ),
        "exact": Choice(
            ("no", "float32"),
            "float32 computes with the checkpoint's weights and no rounding at all, as transformers"
            " does in float32; it overrides the other precisions",
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

    targets: Mapping[str, Target] = MappingProxyType({"onnx": _HERE})

    def target(self, options: Mapping[str, str]) -> Target:
        """Return ONNX Runtime, which has no table: it runs every operator that ONNX has."""
        del options
        return _HERE

    def lint(self, graph: Path, target: Target) -> list[Finding]:
        """Find nothing."""
        del graph, target
        return []

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

    def prepare(self, request: BuildRequest) -> dict[str, str]:
        """Return no file: there is no tool to configure."""
        del request
        return {}

    def build(self, build: Build) -> None:
        """Write a file for every decoder layer, and one for norm and head.

        Raises:
            UnsupportedModel: Layers of this kind are not built here.
            UsageError: An option does not take its value.
        """
        from .build import build_layers

        build_layers(build)
