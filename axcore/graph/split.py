"""Where to cut a chain of stages into parts."""

from __future__ import annotations

from itertools import accumulate, count, pairwise
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..component import Component

LIMIT_BYTES = 2_000_000_000
"""Below protobuf's limit of 2 GiB, with room for the graph: a part can still be a single file."""


def stage_bytes(component: Component, itemsize: int) -> list[int]:
    """Return the bytes of each stage's parameters at `itemsize` bytes an element."""
    return [
        sum(parameter.numel() for parameter in stage.module.parameters()) * itemsize
        for stage in component.stages
    ]


def cuts(sizes: Sequence[int], split: int | Literal["auto"] | None) -> list[int]:
    """Return the indices of stages that begin a new part.

    Args:
        split: Number of parts of nearly equal bytes, "auto" for as few as stay below
            `LIMIT_BYTES` each, None for one.

    Raises:
        UsageError: There are fewer stages than parts.
    """
    if split is None:
        return []
    if split != "auto":
        if not 1 <= split <= len(sizes):
            raise UsageError(
                f"cannot cut {len(sizes)} stages into {split} parts",
                hint=f"choose --split between 1 and {len(sizes)}, or auto",
            )
        return _evenly(sizes, split)
    fewest = max(1, -(-sum(sizes) // LIMIT_BYTES))
    # Cuts lie between stages, so a share can exceed the limit; then one part more is tried.
    for parts in count(fewest):
        chosen = _evenly(sizes, min(parts, len(sizes)))
        if parts >= len(sizes) or max(part_bytes(sizes, chosen)) <= LIMIT_BYTES:
            return chosen
    raise AssertionError


def part_bytes(sizes: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Return the bytes of each part between the cuts."""
    bounds = [0, *chosen, len(sizes)]
    return [sum(sizes[a:b]) for a, b in pairwise(bounds)]


def _evenly(sizes: Sequence[int], parts: int) -> list[int]:
    """Cut where the cumulative size is closest to each equal share; no part is left empty."""
    totals = list(accumulate(sizes))
    chosen: list[int] = []
    for part in range(1, parts):
        first = chosen[-1] + 1 if chosen else 1
        last = len(sizes) - (parts - part)
        share = totals[-1] * part / parts
        chosen.append(min(range(first, last + 1), key=lambda i: abs(totals[i - 1] - share)))
    return chosen
