"""Paired comparison. The oracles are closed forms, all resamples of few images, and the level."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axcore import UsageError
from axcore.evaluate import compare, judge, most_different, statistics
from axcore.evaluate.statistics import RESAMPLES, check_confidence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Array = np.ndarray[Any, Any]

finite = st.floats(-1, 1, width=32)
pairs = st.lists(st.tuples(finite, finite), min_size=1, max_size=40)


def test_the_interval_is_that_of_the_normal_law() -> None:
    """With many images the interval becomes mean ± 1.96 standard errors. Oracle: that closed
    form; the tolerance is three errors of a quantile from so many resamples.
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


def test_the_interval_is_that_of_all_parts_and_resamples() -> None:
    """For six images every part and all 6^6 resamples can be listed. Oracle: both intervals
    worked out from the lists; where resamples are drawn, within four errors of sampling.
    """
    differences = np.array([0.11, -0.07, 0.23, 0.05, -0.019, 0.3])
    made = compare(differences, np.zeros(6), confidence=0.8)
    parts = [part for size in range(1, 7) for part in combinations(differences, size)]
    means = sorted(map(np.mean, parts))  # 63: six gaps of 64 are the tenth to cut off
    drawn = np.array(list(product(differences, repeat=6)))
    spread = np.maximum(drawn.std(axis=1), 1e-12)
    ratios = (drawn.mean(axis=1) - differences.mean()) / spread
    slack = 4 * math.sqrt(0.1 * 0.9 / RESAMPLES)
    bounds = [
        differences.mean() - np.quantile(ratios, level) * differences.std()
        for level in (0.9 + slack, 0.9 - slack, 0.1 + slack, 0.1 - slack)
    ]
    assert made.low is not None
    assert made.high is not None
    assert min(means[5], bounds[0]) <= made.low <= min(means[5], bounds[1])
    assert max(means[-6], bounds[2]) <= made.high <= max(means[-6], bounds[3])


@given(pairs)
def test_exchanging_the_sides_exchanges_the_verdict(scores: list[tuple[float, float]]) -> None:
    """The sides are treated alike. Oracle: symmetry; the interval of -x is the mirrored one of x,
    and there is none below six images.
    """
    first, second = np.array(scores).T
    made, mirrored = compare(first, second), compare(second, first)
    assert made.difference == pytest.approx(made.means[0] - made.means[1], abs=1e-9)
    assert (made.low is None, made.high is None) == (len(scores) < 6, len(scores) < 6)
    if made.low is not None and made.high is not None:
        assert (mirrored.low, mirrored.high) == pytest.approx((-made.high, -made.low), abs=1e-9)
    opposite = {"better": "worse", "worse": "better"}
    assert mirrored.verdict == opposite.get(made.verdict, made.verdict)
    assert compare(first, second) == made


@given(st.lists(st.integers(-3, 3), min_size=6, max_size=20))
def test_the_interval_moves_with_the_differences(counts: list[int]) -> None:
    """Equal differences, which no resample's deviation survives but for rounding. Oracle: shifting
    all differences by a constant shifts the interval by it.
    """
    differences = np.array(counts, np.float64)
    made = compare(differences, np.zeros(len(counts)))
    moved = compare(differences + 0.1, np.zeros(len(counts)))
    assert made.low is not None
    assert made.high is not None
    assert (moved.low, moved.high) == pytest.approx((made.low + 0.1, made.high + 0.1), abs=1e-9)


# Calibration -------------------------------------------------------------------------------------

TRIALS = 400
SAMPLERS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda random, count: random.normal(size=count),
    "skewed": lambda random, count: random.exponential(size=count) - 1,
    "mostly equal": lambda random, count: random.normal(size=count) * (random.random(count) < 0.3),
}


def verdicts(kind: str, count: int, shift: float = 0.0) -> Counter[str]:
    """Return how often each verdict falls, on differences whose mean is `shift`."""
    random, even = np.random.default_rng(count), np.zeros(count)
    drawn = (SAMPLERS[kind](random, count) + shift for _ in range(TRIALS))
    return Counter(compare(differences, even).verdict for differences in drawn)


@pytest.mark.parametrize("count", [6, 8, 10, 14, 20, 50, 100])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_no_difference_is_seldom_taken_for_one(
    monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    """However few the images. Oracle: the level; of 400 trials without a difference a share of
    5 % may err, and three errors of that share more.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    wrong = TRIALS - verdicts(kind, count)["no difference shown"]
    assert wrong / TRIALS <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize(("count", "least"), [(6, 0.5), (10, 0.8), (20, 0.9), (100, 0.95)])
def test_a_clear_difference_is_shown(
    monkeypatch: pytest.MonkeyPatch, count: int, least: float
) -> None:
    """Being right is not bought with silence. Oracle: four standard errors are shown in 98 % of
    trials where the deviation is known; few images, which have to estimate it, may lose some.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    seen = verdicts("normal", count, shift=4 / math.sqrt(count))
    assert seen["better"] / TRIALS >= least
    assert not seen["worse"]


@settings(max_examples=15)
@given(st.lists(st.floats(0.125, 1), min_size=6, max_size=8), st.sampled_from([0.9, 0.95]))
def test_interchangeable_sides_get_their_level_exactly(
    sizes: list[float], confidence: float
) -> None:
    """Whatever the sizes of the differences, if every sign is a coin. Oracle: all 2^n signs."""
    signs = list(product([-1, 1], repeat=len(sizes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 256)
        shown = [
            compare(np.array(sizes) * np.array(sign), np.zeros(len(sizes)), confidence=confidence)
            for sign in signs
        ]
    wrong = sum(made.verdict != "no difference shown" for made in shown)
    assert wrong / len(signs) <= 1 - confidence


# Verdicts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("confidence", "needed"), [(0.95, 6), (0.8, 4), (0.99, 8)])
def test_few_images_show_nothing(confidence: float, needed: int) -> None:
    """However clearly they lean one way. Oracle: the sign test; n coins fall alike with
    probability 2^(1-n), which must not exceed what the confidence leaves.
    """
    for count in range(1, 10):
        made = compare(np.full(count, 0.5), np.zeros(count), confidence=confidence)
        assert (made.verdict == "better") == (count >= needed)


@pytest.mark.parametrize(
    ("count", "confidence", "words"),
    [
        (1, 0.95, "+0.5, no interval: 1 image cannot show anything at 95%"),
        (5, 0.95, "+0.5, no interval: 5 images cannot show anything at 95%"),
        (8, 0.995, "+0.5, no interval: 8 images cannot show anything at 99.5%"),
        (9, 0.995, "+0.5, 99.5% interval +0.5 to +0.5, 9 images"),
        (9, 0.57, "+0.5, 57% interval +0.5 to +0.5, 9 images"),
    ],
)
def test_the_evidence_in_words(count: int, confidence: float, words: str) -> None:
    """The level is not rounded, and too few images have no interval. Oracle: the words."""
    made = compare(np.full(count, 0.75), np.full(count, 0.25), confidence=confidence)
    assert made.evidence == words
    assert (made.verdict == "better") == (made.low is not None)


@given(st.floats(1e-6, 1e-3))
def test_words_and_verdict_agree(size: float) -> None:
    """A small difference that is shown does not look like none. Oracle: no bound reads as 0."""
    made = compare(np.linspace(size, 2 * size, 20), np.zeros(20))
    assert made.verdict == "better"
    assert float(made.evidence.split()[3]) > 0


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resamples drawn in several parts are as many and as good. Oracle: one part."""
    first, second = np.random.default_rng(0).random((2, 30))
    whole = compare(first, second)
    monkeypatch.setattr(statistics, "_CHUNK_VALUES", 30 * 333)
    parts = compare(first, second)
    assert sum(statistics._chunks(30)) == RESAMPLES
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    """A level out of range is refused before anything is read. Oracle: the message; the files
    that would be read are not there.
    """
    with pytest.raises(UsageError, match="0 images cannot be compared"):
        compare(np.zeros(0), np.zeros(0))
    for confidence in (95, 1, 0, -0.5, math.nan, 0.9999):
        with pytest.raises(UsageError, match=f"{confidence:g} is not a confidence level") as caught:
            judge([tmp_path / "a.json"], tmp_path, tmp_path, confidence=confidence)
        assert "0.95" in caught.value.hint
        with pytest.raises(UsageError, match="is not a confidence level"):
            compare(np.zeros(3), np.ones(3), confidence=confidence)
    check_confidence(0.999)


@given(pairs, st.integers(0, 50))
def test_the_images_that_differ_most(scores: list[tuple[float, float]], count: int) -> None:
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
