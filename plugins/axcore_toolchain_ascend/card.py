"""The card that is compiled for, and in which precision. Light: `axcore --help` gets here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from axcore import Choice, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from axcore import GraphFile

NAME = "ascend"
_SOC, _PRECISION = "soc-version", "precision-mode"
_ASK = "ask the card: `Ascend` and the name that `npu-smi info` prints, e.g. Ascend310P3"

OPTIONS: Mapping[str, Choice] = {
    _SOC: Choice((), f"the card; {_ASK}"),
    _PRECISION: Choice(
        ("fp16", "origin", "cube_fp16in_fp32out", "mixed_float16", "mixed_bfloat16"),
        "precision that atc computes in; origin keeps the graph's and is slowest, mixed_bfloat16 "
        "needs the A2 generation",
    ),
}

# Generations before A2 have no bfloat16: all of 310, and 910 but for 910B1.. and 910_93...
_BEFORE_A2 = re.compile(r"Ascend(310|910(?!B\d|_9))")


@dataclass(frozen=True)
class Card:
    """What ``atc`` compiles for.

    Attributes:
        soc_version: Name of the card, e.g. ``Ascend310P3``; empty where nobody has said.
        precision_mode: A value of ``--precision_mode_v2``.
    """

    soc_version: str
    precision_mode: str

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Card:
        """Read `options`, by the names of `OPTIONS`.

        Raises:
            UsageError: A value is none that ``atc`` takes.
        """
        soc, modes = options.get(_SOC, ""), OPTIONS[_PRECISION].values
        mode = options.get(_PRECISION, modes[0])
        if soc and not re.fullmatch(r"Ascend\w+", soc):
            raise UsageError(f"`{soc}` is no soc-version", hint=_ASK)
        if mode not in modes:
            raise UsageError(
                f"atc has no precision mode `{mode}`", hint=f"choose one of {', '.join(modes)}"
            )
        return cls(soc, mode)

    def complete(self) -> Card:
        """Return this target, if it names a card.

        Raises:
            UsageError: It does not; there is no default that could be right.
        """
        if not self.soc_version:
            raise UsageError(f"no --{_SOC}: which card to compile for is not known", hint=_ASK)
        return self

    def check(self, graphs: Iterable[GraphFile]) -> None:
        """Refuse bfloat16 where the card has none.

        Raises:
            UsageError: The precision mode, or a port of a graph, asks for it.
        """
        if not _BEFORE_A2.match(self.soc_version):
            return
        if self.precision_mode == "mixed_bfloat16":
            raise UsageError(
                f"{self.soc_version} has no bfloat16, which --{_PRECISION} mixed_bfloat16 needs",
                hint="choose fp16, origin or mixed_float16",
            )
        for graph in graphs:
            if any(port.dtype == "bfloat16" for port in (*graph.inputs, *graph.outputs)):
                raise UsageError(
                    f"{self.soc_version} has no bfloat16, and {graph.stem}.onnx is made of it",
                    hint="convert again with --dtype float16 or float32",
                )
