"""Choose the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError

Ids = Sequence[int] | np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: Divisor of the logits; 0 always takes the likeliest token.
        top_k: Choose among the k likeliest tokens, including ties with the last; 0 for all.
        top_p: Choose among the fewest likeliest tokens whose probabilities reach this sum, in
            (0, 1].
        repetition_penalty: For tokens that occurred before, positive logits are divided by it and
            negative ones multiplied; 1 for none.
        seed: Makes answers repeatable; None takes a new seed each time.

    Raises:
        UsageError: A value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        _check("top-k", self.top_k, self.top_k >= 0, "0 (all tokens) or more")
        _check("top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1")
        penalty = self.repetition_penalty  # outside this range, logits could become infinite
        _check("repetition-penalty", penalty, 1e-9 <= penalty <= 1e9, "1e-9 to 1e9; 1 for none")
        _check("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more")


def _check(name: str, value: float | None, good: bool, allowed: str) -> None:
    if not good:
        raise UsageError(f"--{name} {value} is out of range", hint=f"choose {allowed}")


class Sampler:
    """Draws tokens with fixed settings; with equal seeds, equal logits give equal tokens."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self._random = np.random.default_rng(settings.seed)

    def __call__(self, logits: Floats, seen: Ids) -> int:
        """Return the next token.

        Args:
            logits: float32 ``[V]``; not changed.
            seen: Token ids of the prompt and the answer so far, for the repetition penalty.
        """
        if self.settings.temperature == 0:
            return int(self._penalised(logits, seen).argmax())
        tokens, probabilities = self.distribution(logits, seen)
        return int(self._random.choice(tokens, p=probabilities))

    def distribution(
        self, logits: Floats, seen: Ids
    ) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float64]]]:
        """Return the tokens that can be drawn and their probabilities, for a temperature above 0.

        Penalty, temperature, top-k and top-p apply in this order.

        Returns:
            int64 ``[n]``, ascending ids, and float64 ``[n]``, which sums to 1.

        Source: transformers, ``GenerationMixin._get_logits_processor`` and the warpers it lists.
        """
        scores = self._penalised(logits, seen)
        tokens = _likeliest(scores, self.settings.top_k)
        below = scores[tokens].astype(np.float64) - scores.max()
        with np.errstate(over="ignore"):  # at low temperatures: -inf, which is never drawn
            weights = np.exp(below / self.settings.temperature)
        kept = _nucleus(weights / weights.sum(), self.settings.top_p)
        return tokens[kept], weights[kept] / weights[kept].sum()

    def _penalised(self, logits: Floats, seen: Ids) -> Floats:
        penalty = np.float32(self.settings.repetition_penalty)
        if penalty == 1 or len(seen) == 0:
            return logits
        ids = np.asarray(seen, np.int64)
        scores: Floats = logits.copy()
        found = scores[ids]
        scores[ids] = np.where(found < 0, found * penalty, found / penalty)
        return scores


def _likeliest(scores: Floats, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the indices of the `count` highest scores, including ties with the last."""
    if not 0 < count < len(scores):
        return np.arange(len(scores))
    place = len(scores) - count
    return np.flatnonzero(scores >= np.partition(scores, place)[place])


def _nucleus(probabilities: Floats, top_p: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return, ascending, the indices of the fewest likeliest tokens that together reach `top_p`."""
    if top_p == 1:
        return np.arange(len(probabilities))
    # All tokens below this bound together have less than 1 - top_p, so none of them is kept. That
    # leaves few tokens to sort.
    bound = (1 - top_p) / len(probabilities)
    candidates = np.flatnonzero(probabilities >= bound)
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    return np.sort(order[before < top_p])
