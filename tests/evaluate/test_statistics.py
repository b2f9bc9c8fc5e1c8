"""Paired comparison. The oracles are closed forms and the exact bootstrap of few pictures."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore import UsageError
from axcore.evaluate import compare, most_different, statistics
from axcore.evaluate.statistics import RESAMPLES

finite = st.floats(-1, 1, width=32)
pairs = st.lists(st.tuples(finite, finite), min_size=1, max_size=40)


def test_the_interval_is_that_of_the_normal_law() -> None:
    """With many pictures the bootstrap's interval becomes mean ± 1.96 standard errors. Oracle:
    that closed form; the tolerance is three errors of a quantile from so many resamples.
    """
    random = np.random.default_rng(7)
    second = random.normal(0.3, 0.1, 2000)
    first = second + random.normal(0.004, 0.05, 2000)
    made = compare(first, second, confidence=0.95, seed=3)
    error = (first - second).std() / math.sqrt(2000)
    density = math.exp(-(1.96**2) / 2) / math.sqrt(2 * math.pi)
    tolerance = 3 * error * math.sqrt(0.025 * 0.975 / RESAMPLES) / density
    assert made.low == pytest.approx(made.difference - 1.95996 * error, abs=tolerance)
    assert made.high == pytest.approx(made.difference + 1.95996 * error, abs=tolerance)


def test_the_interval_is_that_of_all_resamples() -> None:
    """For five pictures all 5^5 resamples can be listed. Oracle: the share of their means outside
    the interval, a tail of 10 % on either side, within four errors of sampling.
    """
    differences = np.array([0.11, -0.07, 0.23, 0.05, -0.019])
    made = compare(differences, np.zeros(5), confidence=0.8)
    means = np.array([np.mean(draw) for draw in product(differences, repeat=5)])
    slack = 4 * math.sqrt(0.1 * 0.9 / RESAMPLES)
    for outside in (means < made.low - 1e-12, means > made.high + 1e-12):
        assert outside.mean() <= 0.1 + slack
    for beyond in (means <= made.low + 1e-12, means >= made.high - 1e-12):
        assert beyond.mean() >= 0.1 - slack


@given(pairs)
def test_exchanging_the_sides_exchanges_the_verdict(scores: list[tuple[float, float]]) -> None:
    """The mean lies in its interval, and the sides are treated alike. Oracle: symmetry; the
    interval of -x is the mirrored one of x.
    """
    first, second = np.array(scores).T
    made, mirrored = compare(first, second), compare(second, first)
    assert made.difference == pytest.approx(made.means[0] - made.means[1], abs=1e-9)
    assert (mirrored.low, mirrored.high) == pytest.approx((-made.high, -made.low), abs=1e-9)
    opposite = {"better": "worse", "worse": "better"}
    assert mirrored.verdict == opposite.get(made.verdict, made.verdict)
    assert compare(first, second) == made


def test_verdicts() -> None:
    """Oracle: by construction; every difference leans one way, or both ways alike."""
    base = np.linspace(0.2, 0.4, 20)
    assert compare(base + 0.01, base).verdict == "better"
    assert compare(base - 0.01, base).verdict == "worse"
    assert compare(base, base).verdict == "no difference shown"
    assert compare(base, base[::-1]).verdict == "no difference shown"


@pytest.mark.parametrize(("confidence", "needed"), [(0.95, 6), (0.8, 4), (0.99, 8)])
def test_few_pictures_show_nothing(confidence: float, needed: int) -> None:
    """However clearly they lean one way. Oracle: the sign test; n coins fall alike with
    probability 2^(1-n), which must not exceed what the confidence leaves.
    """
    for count in range(1, 10):
        made = compare(np.full(count, 0.5), np.zeros(count), confidence=confidence)
        assert (made.verdict == "better") == (count >= needed)


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resamples drawn in several parts are as many and as good. Oracle: one part."""
    first, second = np.random.default_rng(0).random((2, 30))
    whole = compare(first, second)
    monkeypatch.setattr(statistics, "_CHUNK_VALUES", 30 * 333)
    parts = compare(first, second)
    assert len(statistics._resampled_means(first - second, 0)) == RESAMPLES
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_what_cannot_be_compared() -> None:
    """Oracle: the message."""
    with pytest.raises(UsageError, match="0 pictures cannot be compared"):
        compare(np.zeros(0), np.zeros(0))
    with pytest.raises(UsageError, match="at a confidence of 95"):
        compare(np.zeros(3), np.ones(3), confidence=95)


@given(pairs, st.integers(0, 50))
def test_the_pictures_that_differ_most(scores: list[tuple[float, float]], count: int) -> None:
    """Oracle: nothing left out differs more than anything listed, and the order descends."""
    first, second = np.array(scores).T
    names = [f"{i:02}.jpg" for i in range(len(scores))]
    rows = most_different(names, first, second, count)
    listed = [abs(row.difference) for row in rows]
    left_out = [abs(a - b) for name, (a, b) in zip(names, scores, strict=True)
                if name not in {row.name for row in rows}]  # fmt: skip
    assert len(rows) == min(count, len(scores))
    assert listed == sorted(listed, reverse=True)
    assert not rows or max(left_out, default=0) <= listed[-1]
    assert all((row.first, row.second) == scores[int(row.name[:2])] for row in rows)
