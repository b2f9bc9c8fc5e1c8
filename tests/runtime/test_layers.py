"""Layers of every sort, in chunks and token by token, give what they give in one piece."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from axcore.errors import BudgetError
from axcore.runtime import axengine_sim
from axcore.runtime.language import LayerModels

from .toy_decoder import (
    ADDED,
    CACHE,
    CHUNK,
    HISTORIES,
    VOCABULARY,
    WIDTH,
    Array,
    ToyDecoder,
    built_toy,
)

__all__ = ["built_toy"]

LIMIT, CONTEXT = HISTORIES[-1] + CHUNK, CACHE + 1
IDS = st.integers(0, VOCABULARY - 1)


@pytest.fixture(scope="module")
def model(toy: ToyDecoder) -> LayerModels:
    return LayerModels(toy.deployment, axengine_sim, ".onnx")


class Conversation:
    """What is in the caches, and what the toy says of it in one piece."""

    def __init__(self, model: LayerModels, toy: ToyDecoder) -> None:
        self.model, self.toy = model, toy
        self.rows, self.blocks = toy.rows([]), list[int]()

    def read(self, rows: Array, blocks: list[int]) -> int:
        """Read a prompt behind what it shares with what was read before; return what was kept."""
        kept = self.model.resume(self.common(rows, blocks), len(rows), np.array(blocks))
        rest = self.positions(len(rows))[:, kept:]
        found = self.model.prefill(rows[None, kept:], rest, np.array(blocks)[kept:])[0]
        self.rows, self.blocks = rows, blocks
        self.compare(found)
        assert self.model.filled == len(rows)
        return kept

    def common(self, rows: Array, blocks: list[int]) -> int:
        count = min(len(rows) - 1, len(self.rows))
        same = [
            blocks[i] == self.blocks[i] and np.array_equal(rows[i], self.rows[i])
            for i in range(count)
        ]
        known = next((i for i, equal in enumerate(same) if not equal), count)
        # A block that goes on in either is another one: its first tokens have seen its last.
        while known > 0 and any(
            known < len(b) and b[known] == b[known - 1] > 0 for b in (blocks, self.blocks)
        ):
            known -= 1
        return known

    def say(self, token: int) -> None:
        """Decode a token."""
        row = self.toy.rows([token])
        found = self.model.decode(row, len(self.rows))[0]
        self.rows, self.blocks = np.concatenate([self.rows, row]), [*self.blocks, 0]
        self.compare(found)

    def compare(self, found: Array) -> None:
        expected = self.toy.logits(self.rows, self.positions(len(self.rows)), self.blocks)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

    @staticmethod
    def positions(count: int) -> Array:
        # A single token has one row of positions, which stands for both.
        return np.stack([np.arange(count)] * 2)


@st.composite
def prompts(draw: st.DrawFn, most: int = LIMIT) -> tuple[list[int], list[int]]:
    """Draw tokens and blocks of at most half a chunk."""
    ids = draw(st.lists(IDS, min_size=1, max_size=most))
    blocks = list[int]()
    while len(blocks) < len(ids):
        length = draw(st.integers(1, CHUNK // 2))
        blocks += [draw(st.sampled_from([0, 0, 1 + len(blocks)]))] * length
    return ids, blocks[: len(ids)]


def can_be_cut(blocks: list[int], begin: int = 0) -> bool:
    """Whether chunks from `begin` on can hold all tokens, by trying every way."""
    left = len(blocks) - begin
    ends = [
        end
        for end in range(begin + 1, min(begin + CHUNK, HISTORIES[-1]) + 1)
        if end < len(blocks) and not blocks[end] == blocks[end - 1] > 0
    ]
    return left <= CHUNK or any(can_be_cut(blocks, end) for end in ends)


def added_rows(toy: ToyDecoder, ids: list[int], blocks: list[int], seed: int) -> Array:
    """Rows of `ids`, those in blocks with something to add behind layers."""
    random = np.random.default_rng(seed)
    more = random.standard_normal((len(ids), WIDTH * len(ADDED))).astype(np.float32)
    return toy.rows(ids, more * (np.array(blocks) > 0)[:, None])


@settings(max_examples=40)
@given(prompt=prompts(), seed=st.integers(0, 9), answer=st.lists(IDS, max_size=6))
def test_a_prompt_and_its_answer(
    model: LayerModels,
    toy: ToyDecoder,
    prompt: tuple[list[int], list[int]],
    seed: int,
    answer: list[int],
) -> None:
    """Of any length, with blocks anywhere, added rows in them, and tokens behind.

    Oracle: the same modules in torch, over the whole sequence in one piece; of what is refused,
    that none of all the ways to cut it fits.
    """
    conversation = Conversation(model, toy)
    rows = added_rows(toy, *prompt, seed)
    if not can_be_cut(prompt[1]):
        with pytest.raises(BudgetError, match="fewer where tokens that see each other"):
            conversation.read(rows, prompt[1])
        return
    assert conversation.read(rows, prompt[1]) == 0
    for token in answer[: CONTEXT - len(prompt[0])]:
        conversation.say(token)


@settings(max_examples=25)
@given(data=st.data(), first=prompts(most=10), seed=st.integers(0, 9))
def test_further_turns_begin_where_they_part(
    model: LayerModels,
    toy: ToyDecoder,
    data: st.DataObject,
    first: tuple[list[int], list[int]],
    seed: int,
) -> None:
    """Turns that repeat all that was read, or a part of it, then go on otherwise.

    Oracle: as above; a turn behind all that was read keeps all of it.
    """
    conversation = Conversation(model, toy)
    conversation.read(added_rows(toy, *first, seed), first[1])
    for turn in range(1, 3):
        for token in data.draw(st.lists(IDS, max_size=3)):
            if len(conversation.rows) < HISTORIES[-1]:
                conversation.say(token)
        before = len(conversation.rows)
        shared = data.draw(st.sampled_from([before, before, before // 2, 0]))
        ids, blocks = data.draw(prompts(most=4))
        rest = added_rows(toy, ids, blocks, seed + 1)
        numbers = [number and number + 100 * turn for number in blocks]  # no block goes on
        rows = np.concatenate([conversation.rows[:shared], rest])[:LIMIT]
        every = [*conversation.blocks[:shared], *numbers][:LIMIT]
        assume(can_be_cut(every))
        kept = conversation.read(rows, every)
        assert kept == before or shared < before or before > HISTORIES[-1]
