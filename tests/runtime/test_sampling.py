"""Sampling, compared with the processors that transformers' generate applies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from axcore.errors import UsageError
from axcore.runtime.sampling import Sampler, Sampling

SIZE = 60
Logits = np.ndarray[Any, np.dtype[np.float32]]


def drawn(seed: int, spread: float) -> Logits:
    """Return logits that all differ."""
    return np.random.default_rng(seed).normal(0, spread, SIZE).astype(np.float32)


logits = st.one_of(
    arrays.arrays(np.float32, SIZE, elements=st.floats(-20, 20, width=32, allow_subnormal=False)),
    st.builds(drawn, st.integers(0, 2**32), st.floats(0.1, 8)),
)
ids = st.lists(st.integers(0, SIZE - 1), max_size=40)
penalties = st.sampled_from([1.0, 1.05, 1.5, 0.8])
settings_ = st.builds(
    Sampling,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, SIZE + 5),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    repetition_penalty=penalties,
    seed=st.just(0),
)


def expected(settings: Sampling, values: Logits, seen: list[int]) -> Logits:
    """Return the probability of every token after the processors, in their order in generate."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    scores = processors(torch.LongTensor([seen]), torch.FloatTensor(values[None]))
    return scores.double().softmax(-1)[0].numpy()


def unclear(settings: Sampling, values: Logits, seen: list[int]) -> bool:
    """Whether rounding, or the order of equal logits, decides where the nucleus ends."""
    whole = Sampling(**{**vars(settings), "top_p": 1.0})
    ordered = np.sort(expected(whole, values, seen))[::-1]
    reached = np.cumsum(ordered)
    last = int(np.searchsorted(reached, settings.top_p))
    close = bool(np.any(np.abs(reached - settings.top_p) < 1e-5))
    around = ordered[max(last - 1, 0) : last + 2]
    return settings.top_p < 1 and (close or len(set(around)) < len(around))


@given(settings_, logits, ids)
def test_distribution_is_that_of_transformers(
    settings: Sampling, values: Logits, seen: list[int]
) -> None:
    """The same tokens survive, with the same probabilities. Oracle: transformers' warpers."""
    assume(not unclear(settings, values, seen))
    before = values.copy()
    tokens, probabilities = Sampler(settings).distribution(values, seen)
    found = np.zeros(SIZE)
    found[tokens] = probabilities
    wanted = expected(settings, values, seen)
    np.testing.assert_array_equal(found > 0, wanted > 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-12)
    np.testing.assert_array_equal(values, before)


@given(
    temperature=st.floats(0, exclude_min=True, allow_infinity=False),
    penalty=st.sampled_from([1e-9, 1.0, 1e9]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([0.9, 1.0]),
    values=logits,
    seen=ids,
)
def test_every_temperature_gives_probabilities(
    temperature: float, penalty: float, top_k: int, top_p: float, values: Logits, seen: list[int]
) -> None:
    """However low or high, and a likelier token never gets less. Oracle: what probabilities are."""
    sampler = Sampler(Sampling(temperature, top_k, top_p, penalty, seed=0))
    tokens, probabilities = sampler.distribution(values, seen)
    assert abs(probabilities.sum() - 1) < 1e-9
    scores = sampler._penalised(values, seen)[tokens]
    assert (np.diff(probabilities[np.argsort(scores)]) >= 0).all()
    assert sampler(values, seen) in tokens
    if top_p == 1:  # at the highest temperatures all tokens are equal, and a part of them is drawn
        assert scores.max() == sampler._penalised(values, seen).max()


@given(logits, ids, penalties)
def test_greedy_takes_the_likeliest_after_the_penalty(
    values: Logits, seen: list[int], penalty: float
) -> None:
    """Oracle: transformers' repetition penalty and torch's maximum."""
    token = Sampler(Sampling(repetition_penalty=penalty))(values, seen)
    scores = torch.FloatTensor(values[None])
    if penalty != 1:
        processor = RepetitionPenaltyLogitsProcessor(penalty)
        scores = processor(torch.LongTensor([seen]), torch.FloatTensor(scores))
    assert scores[0, token] == scores.max()


@given(settings_, logits, st.integers(0, 2**32))
def test_a_seed_repeats_the_draws(settings: Sampling, values: Logits, seed: int) -> None:
    """Two samplers of one seed agree draw by draw, and draw only what may be drawn."""
    seeded = Sampling(**{**vars(settings), "seed": seed})
    first, second = Sampler(seeded), Sampler(seeded)
    draws = [first(values, []) for _ in range(5)]
    assert draws == [second(values, []) for _ in range(5)]
    assert set(draws) <= set(first.distribution(values, [])[0].tolist())


def test_draws_follow_the_distribution() -> None:
    """Shares of 4000 draws lie within four standard errors of the probabilities."""
    values = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=3))
    counts = Counter(sampler(values, []) for _ in range(4000))
    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        error = (share * (1 - share) / 4000) ** 0.5
        assert abs(counts[token] / 4000 - share) < 4 * error


def test_a_large_vocabulary_is_not_sorted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 152,000 tokens only those that matter are sorted. Oracle: the length np.argsort is given;
    the sorting itself stays numpy's.
    """
    values = np.random.default_rng(0).normal(0, 3, 152_000).astype(np.float32)
    lengths = []
    argsort = np.argsort

    def noted(array: Any, *args: Any, **kwargs: Any) -> Any:
        lengths.append(len(array))
        return argsort(array, *args, **kwargs)

    monkeypatch.setattr(np, "argsort", noted)
    Sampler(Sampling(temperature=0.7, top_k=20, top_p=0.8, seed=0))(values, [])
    Sampler(Sampling(temperature=0.7, top_p=0.8, seed=0))(values, [])
    assert lengths[0] <= 20
    assert lengths[1] < 40_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "--temperature -0.1 is out of range"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": float("inf")}, "--temperature inf"),
        ({"top_k": -1}, "--top-k -1"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"top_p": 1.1}, "--top-p 1.1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0"),
        ({"repetition_penalty": 1e-40}, "--repetition-penalty 1e-40"),
        ({"repetition_penalty": 1e39}, "--repetition-penalty 1e"),
        ({"seed": -3}, "--seed -3"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    """The message quotes option and value, the hint says what is allowed."""
    with pytest.raises(UsageError, match=message) as caught:
        Sampling(**wrong)
    assert caught.value.hint.startswith("choose ")
