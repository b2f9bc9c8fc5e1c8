"""The chips that Pulsar2 compiles for. Light: `axcore --help` gets here."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ...choices import Choice
from ...errors import UsageError
from ..contract import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...graph.lint import Rule

NPU_MODES: Mapping[str, tuple[str, ...]] = {
    "AX650": ("NPU1", "NPU2", "NPU3"),
    "M76H": ("NPU1", "NPU2", "NPU3"),
    "AX620E": ("NPU1", "NPU2"),
    "AX615": ("NPU1", "NPU2"),
    "AX637": ("NPU1",),
    "M57": ("NPU1",),
    "AX8860": ("NPU1", "NPU2", "NPU4"),
}
"""``--target_hardware`` to the ``--npu_mode`` values it has: how much of the NPU a graph takes."""

DEFAULT_CHIP = next(iter(NPU_MODES))

OPTIONS: Mapping[str, Choice] = MappingProxyType(
    {
        "chip": Choice(
            tuple(NPU_MODES), "the chip that is built for; AX630C and AX620Q are built as AX620E"
        ),
        "npu-mode": Choice(
            (),
            "NPU1 to NPU4: how much of the NPU a vision graph takes; default: all there is",
        ),
        "compiler-check": Choice(
            (),
            "0 to 3, as Pulsar2's compiler.check; default: 2 where activations have 16 bits, for"
            " without it an overflow shows on the board alone, else 0",
        ),
        "weight-type": Choice(
            (),
            "how the language model's weights are stored: s8, s4, bf16, fp16, fp8_e4m3 or fp8_e5m2;"
            " default: what the model's plugin says, usually s8",
        ),
        "hidden-state-type": Choice(
            (), "states and caches of the language model: bf16, or fp16, which is more precise"
        ),
        "parallel": Choice(
            (),
            "processes of the language model's builder; default: 8; 32 need more than 32 GB",
        ),
        "accept-faults": Choice(
            ("no", "yes"),
            "whether a build is called good although its results do not hold: more than one"
            " subgraph, an output far from the float graph's, or a precision that vanished",
        ),
    }
)


_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "compiler-check": ("0", "1", "2", "3"),
    "weight-type": ("s8", "s4", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2"),
    "hidden-state-type": ("bf16", "fp16"),
    "parallel": tuple(map(str, range(1, 129))),
}
"""The values of the options that have no default of their own."""


class Chip(NamedTuple):
    """What is built for, in the words of Pulsar2's command line."""

    name: str
    npu_mode: str

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Chip:
        """Read the toolchain's options.

        Raises:
            UsageError: There is no such chip, or it has no such mode; the hint lists what there is.
        """
        name = options["chip"]
        if name not in NPU_MODES:
            raise UsageError(
                f"Pulsar2 has no chip `{name}`", hint=f"choose one of {', '.join(NPU_MODES)}"
            )
        mode = options.get("npu-mode", NPU_MODES[name][-1])
        if mode not in NPU_MODES[name]:
            raise UsageError(
                f"chip {name} has no NPU mode `{mode}`",
                hint=f"choose one of {', '.join(NPU_MODES[name])}",
            )
        return cls(name, mode)


def check_options(options: Mapping[str, str]) -> None:
    """Refuse a value that an option without default does not take.

    Raises:
        UsageError: The hint lists what it takes.
    """
    for name, allowed in _ALLOWED.items():
        if (value := options.get(name, allowed[0])) not in allowed:
            several = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 9 else ", ".join(allowed)
            raise UsageError(f"--{name} cannot be `{value}`", hint=f"choose from {several}")


@cache
def chip_target(chip: str) -> Target:
    """Return a chip with its operator table, where one is published.

    The table is the published one, corrected by a newer page and by the errata; beside it stand the
    rules of what was observed. The newest of everything counts: there are no tables by version.
    """
    from ...graph.lint import OperatorTable

    published, errata = _data("operators.json"), _data("errata.json")
    tables: Mapping[str, list[str]] = published["applies_to"]
    name = next((name for name, chips in tables.items() if chip in (name, *chips)), None)
    if name is None:
        return Target(chip)
    listed = {op: entry["restrictions"] for op, entry in published["chips"][name].items()}
    listed |= errata["newer"]["chips"].get(name, {})
    operators = {
        errata["aliases"].get(op, {"name": op})["name"]: tuple(
            sentence
            for text in restrictions
            for sentence in _amended(errata["restrictions"].get(op, {}), text)
        )
        for op, restrictions in listed.items()
    }
    table = OperatorTable(
        chip,
        operators,
        errata["opset"]["minimum"],
        _data("remedies.json"),
        published["source"].partition(",")[0],
        tuple(_rule(entry) for entry in _data("observed.json")["rules"] if _holds(entry, chip)),
    )
    return Target(chip, table)


def _holds(entry: Mapping[str, Any], chip: str) -> bool:
    return chip in entry.get("chips", [chip])


def _rule(entry: Mapping[str, Any]) -> Rule:
    from ...graph.lint import Rule

    seen = f" (Pulsar2 {entry['versions']})" if "versions" in entry else ""
    return Rule(
        tuple(entry["operators"]),
        entry["constraint"],
        entry["severity"],
        entry["consequence"],
        entry["confidence"],
        entry["source"] + seen,
        entry.get("remedy", ""),
    )


def _amended(errata: Mapping[str, Any], text: str) -> list[str]:
    """Return what a published restriction becomes when the errata are applied."""
    return list(errata[text]["becomes"]) if text in errata else [text]


@cache
def _data(name: str) -> Any:
    folder = resources.files(__package__ or "") / "data"
    return json.loads((folder / name).read_text(encoding="utf-8"))
