"""Throughput as an image."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from ..display import printable
from ..errors import ToolchainError, UsageError
from ..files import explained_full_disk
from ..foreign import read_bytes
from ..limits import PLOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .measurement import Measurement

FORMATS = (".png", ".svg", ".pdf")
_PANELS: tuple[tuple[str, Callable[[Measurement], float]], ...] = (
    ("time to first token [s]", lambda one: one.first_token_ms / 1000),
    ("time per later token [ms]", lambda one: one.later_token_ms),
    ("throughput, end to end [tokens/s]", lambda one: one.tokens_per_s),
)
_DIGITS = 36  # of tick labels that fit below a panel


def check_plot(path: Path) -> None:
    """Refuse a file that cannot be written as a plot, before anything is measured.

    Raises:
        ToolchainError: matplotlib is not installed.
        UsageError: Its suffix is not in `FORMATS`, or it exists and is not a plot.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"a plot cannot be written as {path}",
            hint=f"choose a name that ends in {', '.join(FORMATS)}",
        )
    # matplotlib signs what it draws, in all these formats.
    if path.is_file() and not _is_plot(path):
        raise UsageError(
            f"{path} exists and is not a plot, so it is not replaced",
            hint="choose another name with --plot, or leave the plot out with --no-plot",
        )
    if find_spec("matplotlib") is None:
        raise ToolchainError(
            "a plot needs matplotlib, which is not installed",
            hint='pip install "axcore[evaluate]", or leave the plot out with --no-plot',
        )


def _is_plot(path: Path) -> bool:
    try:
        return b"atplotlib" in read_bytes(path, PLOT_BYTES)
    except (OSError, ValueError):
        return False


def plot_throughput(measurements: Sequence[Measurement], path: Path, title: str) -> None:
    """Draw first-token time, decode time and tokens per second against batch size.

    Each prompt length is a line. If there is one batch size and several prompt lengths, the prompt
    length is the axis. Repeated runs are dots, and the line connects their medians.

    Args:
        measurements: What to draw, at least one, in any order.
        path: A file in one of `FORMATS`.

    Raises:
        ToolchainError: matplotlib is not installed.
        UsageError: The file has another suffix, or exists and is not a plot.
        BudgetError: The disk is full.
    """
    check_plot(path)
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axis, lines = _lines(measurements)
    colours = colormaps["viridis"]([0.85 * n / len(lines) for n in range(len(lines))])
    for axes, (name, value) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        axes.set_prop_cycle(color=colours)
        for label, points in lines.items():
            _draw(axes, label, {x: [value(one) for one in runs] for x, runs in points.items()})
        _dress(axes, name, axis, {x for points in lines.values() for x in points})
    if len(lines) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, title="prompt [tokens]", loc="outside right upper", frameon=False
        )
    # A name is text, whatever it has of mathematics or of no character at all.
    figure.suptitle(printable(title), fontsize="medium", wrap=True, parse_math=False)
    with explained_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _lines(
    measurements: Iterable[Measurement],
) -> tuple[str, dict[str, dict[int, list[Measurement]]]]:
    """Return the label of the axis, and for the label of each line: position to runs."""
    runs = sorted(measurements, key=lambda one: (one.input_len, one.batch))
    batches, lengths = {one.batch for one in runs}, {one.input_len for one in runs}
    if len(batches) == 1 and len(lengths) > 1:
        axis = f"prompt [tokens], batch of {runs[0].batch}"
        return axis, {"": _grouped(runs, lambda one: one.input_len)}
    axis = "batch" if len(lengths) > 1 else f"batch, prompts of {runs[0].input_len} tokens"
    by_length = _grouped(runs, lambda one: one.input_len)
    return axis, {str(n): _grouped(same, lambda one: one.batch) for n, same in by_length.items()}


def _grouped(
    runs: Iterable[Measurement], key: Callable[[Measurement], int]
) -> dict[int, list[Measurement]]:
    return {place: list(same) for place, same in groupby(runs, key)}


def _draw(axes: Any, label: str, points: Mapping[int, Sequence[float]]) -> None:
    """Draw a line through the medians, and every value as a dot."""
    (line,) = axes.plot(list(points), [median(values) for values in points.values()], label=label)
    dots = [(x, value) for x, values in points.items() for value in values]
    axes.plot(*zip(*dots, strict=True), "o", color=line.get_color())


def _dress(axes: Any, name: str, axis: str, places: Iterable[int]) -> None:
    axes.set_title(name, fontsize="medium")
    axes.set_xlabel(axis)
    axes.set_xticks(_ticks(sorted(places)))
    axes.set_ylim(0, 1.05 * axes.dataLim.y1)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(places: Sequence[int]) -> list[int]:
    """Return ascending `places` without those whose labels would overlap."""
    gap = (places[-1] - places[0]) * len(str(places[-1])) / _DIGITS
    kept: list[int] = []
    for place in places:
        if not kept or place - kept[-1] >= gap:
            kept.append(place)
    return kept
