"""Where chains are cut: laws that hold for all sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from axcore import Component, Port, Stage
from axcore.errors import UsageError
from axcore.graph.split import LIMIT_BYTES, cuts, part_bytes, stage_bytes

sizes_lists = st.lists(st.integers(0, 15).map(lambda n: n * 10**8), min_size=1, max_size=40)


@given(sizes=sizes_lists, data=st.data())
def test_n_parts_none_of_them_empty(sizes: list[int], data: st.DataObject) -> None:
    """Ascending cuts inside the chain make exactly N parts. Oracle: the law itself."""
    parts = data.draw(st.integers(1, len(sizes)))
    chosen = cuts(sizes, parts)
    assert len(chosen) == parts - 1
    assert chosen == sorted(set(chosen))
    assert all(0 < cut < len(sizes) for cut in chosen)
    assert sum(part_bytes(sizes, chosen)) == sum(sizes)


@given(sizes=sizes_lists)
@example(sizes=[1_500_000_000, 1_500_000_000, 1_000_000_000])  # two even parts are too large
def test_auto_stays_below_the_limit(sizes: list[int]) -> None:
    """Each part is below the limit or a single stage. Oracle: the law itself."""
    chosen = cuts(sizes, "auto")
    bounds = [0, *chosen, len(sizes)]
    stages = [stop - start for start, stop in pairwise(bounds)]
    for count, size in zip(stages, part_bytes(sizes, chosen), strict=True):
        assert count == 1 or size <= LIMIT_BYTES


@given(depth=st.integers(1, 60), size=st.integers(1, 10_000), parts=st.integers(1, 8))
def test_equal_stages_are_shared_out_evenly(depth: int, size: int, parts: int) -> None:
    """Parts of a chain of equal stages differ by one stage. Oracle: integer division."""
    parts = min(parts, depth)
    counts = [total // size for total in part_bytes([size] * depth, cuts([size] * depth, parts))]
    assert max(counts) - min(counts) <= 1


def test_nothing_is_cut_unasked() -> None:
    """Without a request a component stays one file, whatever its size. Oracle: the interface."""
    assert cuts([5_000_000_000] * 3, None) == []
    assert cuts([100, 100], "auto") == []


@pytest.mark.parametrize("parts", [0, -1, 4])
def test_more_parts_than_stages(parts: int) -> None:
    """The error says how many there can be. Oracle: three stages."""
    with pytest.raises(UsageError, match=f"cut 3 stages into {parts} parts") as caught:
        cuts([1, 1, 1], parts)
    assert "between 1 and 3" in caught.value.hint


def test_bytes_are_those_of_the_parameters() -> None:
    """Two linear layers, a buffer left out. Oracle: counted by hand."""
    module = nn.Linear(3, 5, device="meta")
    module.register_buffer("table", torch.zeros(100))
    stages = (Stage("a", module), Stage("b", nn.Linear(5, 2, bias=False, device="meta")))
    component = Component("c", "c", stages, (Port("x", (1, 3)),), (Port("y", (1, 2)),))
    assert stage_bytes(component, 2) == [2 * (3 * 5 + 5), 2 * 10]
