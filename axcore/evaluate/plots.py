"""Throughput as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ToolchainError, UsageError
from ..files import explained_full_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .throughput import Measurement

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse a file that cannot become a plot, before there is anything to draw.

    Raises:
        UsageError: Its suffix is none of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"a plot cannot be written as {path}",
            hint=f"choose a name that ends in {', '.join(FORMATS)}",
        )


def plot_throughput(measurements: Sequence[Measurement], path: Path, title: str) -> None:
    """Draw first-token time, decode time and tokens per second against batch size.

    Each prompt length is a line. Where all batches are of one size, the prompt length is the axis.

    Args:
        measurements: What to draw, at least one.
        path: A file in one of `FORMATS`.
        title: Line above.

    Raises:
        ToolchainError: matplotlib is not installed.
        UsageError: The file has another suffix.
        BudgetError: The disk is full.
    """
    check_plot(path)
    figure = _figure()
    panels: tuple[tuple[str, str, Callable[[Measurement], float]], ...] = (
        ("time to first token", "s", lambda one: one.first_token_ms / 1000),
        ("time per later token", "ms", lambda one: one.later_token_ms),
        ("throughput, end to end", "tokens/s", lambda one: one.tokens_per_s),
    )
    axis, lines = _series(measurements)
    for axes, (name, unit, value) in zip(figure.subplots(1, 3), panels, strict=True):
        for label, points in lines:
            axes.plot([x for x, _ in points], [value(one) for _, one in points], "o-", label=label)
        _dress(axes, f"{name} [{unit}]", axis, [x for _, points in lines for x, _ in points])
    if len(lines) > 1:
        figure.axes[0].legend(frameon=False)
    figure.suptitle(title, fontsize="medium")
    with explained_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ToolchainError(
            "a plot needs matplotlib, which is not installed; the tables are written",
            hint='pip install "axcore[evaluate]", or leave the plot out with --no-plot',
        ) from error
    return Figure(figsize=(12, 3.8), layout="constrained")


def _series(
    measurements: Sequence[Measurement],
) -> tuple[str, list[tuple[str, list[tuple[int, Measurement]]]]]:
    """Return what the axis shows, and each line's label and points."""
    if len({one.batch for one in measurements}) == 1 and len(measurements) > 1:
        return "prompt [tokens]", [("", [(one.input_len, one) for one in measurements])]
    lengths = dict.fromkeys(one.input_len for one in measurements)
    return "batch", [
        (f"prompt of {n} tokens", [(one.batch, one) for one in measurements if one.input_len == n])
        for n in lengths
    ]


def _dress(axes: Any, name: str, axis: str, ticks: Sequence[int]) -> None:
    axes.set_title(name, fontsize="medium")
    axes.set_xlabel(axis)
    axes.set_xticks(sorted(set(ticks)))
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
