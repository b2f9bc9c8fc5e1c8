"""Parallel work in order: what comes back, how much waits, and how it ends."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore.calibration.parallel import in_order


@given(st.lists(st.integers()))
def test_results_keep_the_order_of_the_items(items: list[int]) -> None:
    """Oracle: the builtin map."""
    assert list(in_order(str, items)) == list(map(str, items))


def test_few_results_wait() -> None:
    """While the first result is being used, no more items are taken than two for each core."""
    taken = []

    def items() -> object:
        for item in range(1000):
            taken.append(item)
            yield item

    results = in_order(str, items())
    assert next(results) == "0"
    assert len(taken) <= 2 * len(os.sched_getaffinity(0))
    results.close()


def test_the_first_failure_ends_the_work() -> None:
    """What comes before the failing item is delivered, then its exception."""
    results = in_order(lambda item: 1 // item, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
