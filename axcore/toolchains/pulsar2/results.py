"""What a build of a graph leaves to be read: its log, and the precision of every tensor.

Pulsar2 exits with 0 for models that a board cannot load or that answer wrongly, so a build counts
as good only if what it left holds.

Sources: Pulsar2's documentation (log lines, "Quant Precision Table", ``quant_axmodel.json``),
onnxsim/onnxsim ``scripts/axera`` (more than one subgraph, refused precisions, cycles).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...display import size
from ...errors import ToolchainError
from ...foreign import inside, load, open_regular, reason
from ...limits import QUANT_TABLE_BYTES, RECORD_BYTES
from ..output import without_escapes

if TYPE_CHECKING:
    from pathlib import Path

    from .schema import BuildConfig

LEAST_COSINE = 0.95
"""A graph whose outputs agree less with the float graph needs another precision."""

_CYCLES_PER_MS = 0.9e6  # 0.85 to 0.95 GHz: good to 10 %
_LINE_BYTES = 4096
_WORST, _NAME = 5, 40
_COLUMNS: tuple[str, ...] = (
    *("GRAPH", "SUBGRAPHS", "ESTIMATED", "MACS", "COSINE", "WORST", "BITS", "TOOK", "MEMORY"),
)
_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "FP32": 32}
_SUBGRAPHS = re.compile(r"fuse (\d{1,6}) subgraph\(s\)")
_CYCLES = re.compile(r"max_cycle = ([\d,]{1,20})")
_MACS = re.compile(r"QuantAxModel macs: ([\d,]{1,24})")
_TABLE = re.compile(r"Quant Precision Table\s*【(\w+)")
_BARS = re.compile("[│┃]")


@dataclass(frozen=True)
class TensorPrecision:
    """An entry of ``tensor_configs``: how a tensor of an operator is quantised."""

    bit_width: int
    state: str = ""


@dataclass(frozen=True)
class QuantTable:
    """``quant_axmodel.json``: operator to tensor to precision."""

    tensor_configs: Mapping[str, Mapping[str, TensorPrecision]]


@dataclass(frozen=True)
class Row:
    """A row of the precision table: how near an operator's output is to that of the float graph.

    A cosine that is no number, as of an output that is 0 everywhere, is 0.
    """

    operator: str
    tensor: str
    cosine: float


@dataclass(frozen=True)
class GraphResult:
    """What a build of a graph came to.

    Attributes:
        subgraphs: Parts that the compiler made; a vision graph has one.
        max_cycle: Cycles of the NPU, by the compiler's model.
        milliseconds: Estimated from them, to 10 %.
        macs: Multiply-adds.
        cosine: Of the last operator, from end to end; None if no such table was printed.
        worst: The operators that are furthest from the float graph.
        bits: Bit width to the number of tensors that have it.
        faults: What does not hold; empty for a good build.
        seconds: How long the build took.
        peak_bytes: The most memory that one of its processes had; None if that is not known.
    """

    subgraphs: int | None = None
    max_cycle: int | None = None
    milliseconds: float | None = None
    macs: int | None = None
    cosine: float | None = None
    worst: tuple[Row, ...] = ()
    bits: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int | None = None

    @classmethod
    def open(cls, path: Path) -> GraphResult:
        """Read what was found when the graph was built.

        Raises:
            ToolchainError: It is damaged.
        """
        hint = "remove it and run the same command again: the graph is built anew"
        return load(cls, path, RECORD_BYTES, ToolchainError, hint=hint)


def read_result(
    log: Path, output: Path, config: BuildConfig | None, since: float = 0.0
) -> GraphResult:
    """Read what a build left.

    Args:
        log: What the tool printed.
        output: The folder that it filled.
        config: What was asked for; None if that cannot be known.
        since: Time of its start; a table that is older is of another build.

    Raises:
        ToolchainError: The log cannot be read.
    """
    try:
        with open_regular(log) as file:
            lines = iter(lambda: file.readline(_LINE_BYTES), b"")
            result = _read_log(without_escapes(line.decode("utf-8", "replace")) for line in lines)
    except (OSError, ValueError) as error:
        raise ToolchainError(
            f"{log} cannot be read: {reason(error)}", hint="run the same command again"
        ) from error
    faults = [*_faults(result)]
    table: Mapping[str, Mapping[str, TensorPrecision]] = {}
    try:
        table = _quant_table(output, since)
    except ToolchainError as error:  # a reason to doubt, none to throw a model away
        faults.append(f"the precision of its tensors is not known: {error.message}")
    widths = [one.bit_width for op in table.values() for one in op.values()]
    counted = {str(width): number for width, number in sorted(Counter(widths).items())}
    faults += _vanished(config, table) if config and table else ()
    return replace(result, bits=counted, faults=tuple(faults))


def table_of(results: Mapping[str, GraphResult]) -> list[str]:
    """Return what graphs came to, by name, as the lines of a table."""
    rows = [_COLUMNS, *(_cells(name, result) for name, result in results.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _cells(name: str, result: GraphResult) -> tuple[str, ...]:
    worst = result.worst[0] if result.worst else None
    cells = (
        name,
        result.subgraphs,
        result.milliseconds and f"{result.milliseconds:.1f} ms ±10 %",
        result.macs and f"{result.macs / 1e9:.3g} G",
        result.cosine if result.cosine is None else f"{result.cosine:.5f}",
        worst and f"{worst.operator[:_NAME]} {worst.cosine:.5f}",
        ", ".join(f"{bits}: {number}" for bits, number in result.bits.items()),
        f"{result.seconds:.0f} s",
        result.peak_bytes and size(result.peak_bytes),
    )
    return tuple("?" if cell in (None, "") else str(cell) for cell in cells)


def _read_log(lines: Iterable[str]) -> GraphResult:
    found: dict[str, Any] = {}
    tables: dict[str, list[Row]] = {}
    rows: list[Row] = []
    columns: list[str] = []
    for line in lines:
        for name, pattern in (("subgraphs", _SUBGRAPHS), ("max_cycle", _CYCLES), ("macs", _MACS)):
            if match := pattern.search(line):
                found[name] = int(match[1].replace(",", ""))
        if match := _TABLE.search(line):
            rows, columns = tables.setdefault(match[1], []), []
            rows.clear()
        cells = [cell.strip() for cell in _BARS.split(line)[1:-1]]
        if "Operator" in cells:
            columns = cells
        elif row := _row(dict(zip(columns, cells, strict=False))):
            rows.append(row)
    if cycles := found.get("max_cycle"):
        found["milliseconds"] = round(cycles / _CYCLES_PER_MS, 2)
    chained = tables.get("EndToEnd", [])
    if chained:
        found["cosine"] = chained[-1].cosine
    listed = chained or next(iter(tables.values()), [])
    found["worst"] = tuple(sorted(listed, key=lambda row: row.cosine)[:_WORST])
    return GraphResult(**found)


def _row(cells: Mapping[str, str]) -> Row | None:
    """Return a row of the table; its columns have other names in older versions."""
    text = cells.get("Cosin", cells.get("Cosin Distance", ""))
    try:
        cosine = float(text)
        name, tensor = cells["Operator"], cells.get("Output Tensor", "")
        return Row(name, tensor, cosine if math.isfinite(cosine) else 0.0)
    except (KeyError, ValueError):  # a line between rows, or a continued cell
        return None


def _quant_table(output: Path, since: float) -> Mapping[str, Mapping[str, TensorPrecision]]:
    try:
        path = inside(output, "quant/quant_axmodel.json")
        if path.stat().st_mtime < since:
            return {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # a folder of a container's root, a link
        raise ToolchainError(f"{output}/quant: {reason(error)}") from error
    hint = "run the same command again, with --tool of the same version"
    return load(QuantTable, path, QUANT_TABLE_BYTES, ToolchainError, hint=hint).tensor_configs


def _faults(result: GraphResult) -> Iterator[str]:
    if result.subgraphs is None:
        yield "the log does not say into how many subgraphs the graph was fused"
    elif result.subgraphs != 1:
        yield (
            f"{result.subgraphs} subgraphs instead of 1: parts of the graph do not run on the NPU,"
            " and loading such a model has killed the loader of a card"
        )
    if result.cosine is not None and not result.cosine >= LEAST_COSINE:
        worst = result.worst[0]
        yield (
            f"the output agrees with the float graph to a cosine of {result.cosine:.4f} only; worst"
            f" operator: {worst.operator} ({worst.cosine:.4f})"
        )


def _vanished(
    config: BuildConfig, table: Mapping[str, Mapping[str, TensorPrecision]]
) -> Iterator[str]:
    """Yield the precisions that were asked for and that no tensor has."""
    for layer in config.quant.layer_configs:
        bits = _BITS[layer.data_type]
        names = [layer.layer_name, *layer.layer_names]
        chosen = [name for name in names if name] or list(table)
        if any(one.bit_width == bits for op in chosen for one in table.get(op, {}).values()):
            continue
        selector = layer.op_type or layer.op_types or [n for n in names if n]
        where = ", ".join([selector] if isinstance(selector, str) else selector) or "DEFAULT"
        yield f"{layer.data_type} was asked for {where}, and no tensor of it has {bits} bits"
