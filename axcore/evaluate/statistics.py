"""Paired comparison of two sides that were scored on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.random import Generator

    Array = np.ndarray[Any, Any]

RESAMPLES = 10_000
HIGHEST = 0.999  # a higher confidence needs more resamples
_CHUNK_VALUES = 1 << 22  # drawn at a time: 32 MB

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two sides, first minus second.

    Attributes:
        count: Number of images.
        means: Mean score of the first and of the second side.
        difference: Mean of the differences, in units of the score.
        low, high: Confidence interval of `difference`; None where there are too few images for a
            bounded one.
        confidence: Its level, between 0 and 1.
        verdict: Of the first side; a higher score is better.
    """

    count: int
    means: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    confidence: float
    verdict: Verdict

    @property
    def evidence(self) -> str:
        """The interval in words, or why there is none."""
        images = f"{self.count} image{'' if self.count == 1 else 's'}"
        # Significant digits, so that no bound is shown as 0 and 99.5 not as 100.
        level = f"{100 * self.confidence:.10g}%"
        if self.low is None or self.high is None:
            return f"{self.difference:+.3g}, no interval: {images} cannot show anything at {level}"
        interval = f"{level} interval {self.low:+.3g} to {self.high:+.3g}"
        return f"{self.difference:+.3g}, {interval}, {images}"


@dataclass(frozen=True)
class ImageDifference:
    """The scores of one image on both sides."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """First minus second."""
        return self.first - self.second


def compare(first: Array, second: Array, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare two sides by resampling their paired differences.

    The sides differ if the confidence interval of the mean difference excludes zero. It is the
    union of two bootstrap intervals, because for few images each alone is too narrow in cases that
    the other covers:

    - Random subsets: the means of subsets that contain each image with probability 1/2 (all
      subsets, if there are no more than `RESAMPLES`). Exact for any number of images if the
      differences are symmetric about their mean.
    - Studentised bootstrap: second-order accurate for skewed differences, but too narrow if most
      differences are zero.

    By chance alone, all n differences have the same sign with probability ``2 ** (1 - n)``. If that
    exceeds ``1 - confidence`` (below 6 images at 95 %), the first interval is unbounded, so no
    interval is reported and the verdict is "no difference shown".

    Args:
        first, second: Float ``[n]``, finite; entry i of both belongs to the same image.
        confidence: Level of the interval, see `check_confidence`.
        seed: Seed of numpy's default generator; the same seed gives the same interval.

    Raises:
        UsageError: There is no image, or the level is out of range.

    Source: Hartigan, Using Subsample Values as Typical Values, 1969; Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 12.5.
    """
    check_confidence(confidence)
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if not differences.size:
        raise UsageError("0 images cannot be compared", hint="give at least one image")
    low, high = _interval(differences, confidence, seed) or (None, None)
    return Comparison(
        count=differences.size,
        means=(float(np.mean(first)), float(np.mean(second))),
        difference=float(differences.mean()),
        low=low,
        high=high,
        confidence=confidence,
        verdict=_verdict(low, high),
    )


def check_confidence(confidence: float) -> None:
    """Refuse a confidence level out of range.

    Args:
        confidence: A fraction: 0.95 is 95 %.

    Raises:
        UsageError: It is not above 0 and at most `HIGHEST`.
    """
    if not 0 < confidence <= HIGHEST:
        raise UsageError(
            f"{confidence:g} is not a confidence level: use one above 0 and at most {HIGHEST:g}",
            hint="95 % is 0.95",
        )


def most_different(
    names: Sequence[str], first: Array, second: Array, count: int = 5
) -> list[ImageDifference]:
    """Return the images on which the sides differ most, the largest difference first."""
    rows = [
        ImageDifference(name, float(one), float(other))
        for name, one, other in zip(names, first, second, strict=True)
    ]
    return sorted(rows, key=lambda row: (-abs(row.difference), row.name))[:count]


def _interval(differences: Array, confidence: float, seed: int) -> tuple[float, float] | None:
    """Return the union of both intervals; None if one of them is unbounded."""
    if 2.0 ** (1 - differences.size) > 1 - confidence:
        return None
    random, tail = np.random.default_rng(seed), (1 - confidence) / 2
    lowest, highest = _cut(_subset_means(differences, random), tail)
    low, high = _cut(_student_ratios(differences, random), tail)
    mean, deviation = float(differences.mean()), float(differences.std())
    return min(lowest, mean - high * deviation), max(highest, mean - low * deviation)


def _cut(values: Array, tail: float) -> tuple[float, float]:
    """Return the values a tail away from both ends: n values have n + 1 equally likely gaps."""
    ordered = np.sort(values)
    rank = int(tail * (len(ordered) + 1))
    return float(ordered[rank - 1]), float(ordered[-rank])


def _subset_means(differences: Array, random: Generator) -> Array:
    """Return the means of subsets that are not empty: all of them, or `RESAMPLES` drawn."""
    size = differences.size
    if 2**size <= RESAMPLES:
        parts = np.arange(1, 2**size)[:, None] >> np.arange(size) & 1
        return np.asarray(parts @ differences / parts.sum(axis=1))
    means = []
    for rows in _chunks(size):
        parts = random.integers(0, 2, (rows, size))
        counts = parts.sum(axis=1)
        means.append((parts @ differences)[counts > 0] / counts[counts > 0])
    return np.concatenate(means)


def _student_ratios(differences: Array, random: Generator) -> Array:
    """Return each resample's distance from the mean in its standard deviations, ``[RESAMPLES]``.

    A resample of equal values has deviation 0 and gives 0: where there are many of those, the
    interval of the subsets is the wider one.
    """
    size, ratios = differences.size, []
    rounding = 1e-9 * differences.std()  # the deviation of equal values may be 1e-17 instead of 0
    for rows in _chunks(size):
        drawn = differences[random.integers(0, size, (rows, size))]
        deviations = drawn.std(axis=1)
        distances = drawn.mean(axis=1) - differences.mean()
        ratios.append(
            np.divide(distances, deviations, out=np.zeros(rows), where=deviations > rounding)
        )
    return np.concatenate(ratios)


def _chunks(size: int) -> Iterator[int]:
    """Split `RESAMPLES` into chunks whose values fit into `_CHUNK_VALUES`."""
    rows = max(1, _CHUNK_VALUES // size)
    for start in range(0, RESAMPLES, rows):
        yield min(rows, RESAMPLES - start)


def _verdict(low: float | None, high: float | None) -> Verdict:
    if low is None or high is None or low <= 0 <= high:
        return "no difference shown"
    return "better" if low > 0 else "worse"
