"""Whether two sides that were scored on the same pictures differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    Array = np.ndarray[Any, Any]

RESAMPLES = 10_000
_CHUNK_VALUES = 1 << 22  # counts drawn at a time: 32 MB

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two sides, first minus second.

    Attributes:
        count: Number of pictures.
        means: Mean score of the first and of the second side.
        difference: Mean of the differences, in units of the score.
        low, high: Confidence interval of `difference`.
        confidence: Its level, between 0 and 1.
        verdict: What is shown of the first side, a higher score being better.
    """

    count: int
    means: tuple[float, float]
    difference: float
    low: float
    high: float
    confidence: float
    verdict: Verdict


@dataclass(frozen=True)
class PictureDifference:
    """The scores of one picture on both sides."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """First minus second."""
        return self.first - self.second


def compare(first: Array, second: Array, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare two sides by the percentile bootstrap of their paired difference.

    The pictures are drawn anew with replacement `RESAMPLES` times, both scores of a picture
    together. A difference counts as shown where the interval excludes zero and there are pictures
    enough: n of them lean one way by chance alone with probability ``2 ** (1 - n)``, so below 6
    nothing is shown at 95 %, however the interval lies.

    Args:
        first, second: Float ``[n]``, finite; entry i of both is of the same picture.
        confidence: Level of the interval.
        seed: Of numpy's default generator; equal seeds give equal intervals.

    Raises:
        UsageError: There is no picture, or the level is no probability.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    import numpy as np

    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if not differences.size or not 0 < confidence < 1:
        raise UsageError(
            f"{differences.size} pictures cannot be compared at a confidence of {confidence}",
            hint="give at least one picture and a confidence between 0 and 1, such as 0.95",
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(differences, seed), [tail, 1 - tail])
    return Comparison(
        count=differences.size,
        means=(float(np.mean(first)), float(np.mean(second))),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        confidence=confidence,
        verdict=_verdict(differences.size, low, high, confidence),
    )


def most_different(
    names: Sequence[str], first: Array, second: Array, count: int = 5
) -> list[PictureDifference]:
    """Return the pictures on which the sides differ most, the largest difference first."""
    rows = [
        PictureDifference(name, float(one), float(other))
        for name, one, other in zip(names, first, second, strict=True)
    ]
    return sorted(rows, key=lambda row: (-abs(row.difference), row.name))[:count]


def _resampled_means(differences: Array, seed: int) -> Array:
    """Return the mean of each resample, float64 ``[RESAMPLES]``."""
    import numpy as np

    random, size = np.random.default_rng(seed), differences.size
    rows = max(1, min(RESAMPLES, _CHUNK_VALUES // size))
    means = [
        differences[random.integers(0, size, (min(rows, RESAMPLES - start), size))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)


def _verdict(count: int, low: float, high: float, confidence: float) -> Verdict:
    if 2.0 ** (1 - count) > 1 - confidence or low <= 0 <= high:
        return "no difference shown"
    return "better" if low > 0 else "worse"
