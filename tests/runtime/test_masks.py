"""Masks of chunks and of single tokens, and where prompts are cut; no model is run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from axcore import BudgetError
from axcore.runtime.masks import HIDDEN, StepMasks, borders, chunk_ends, chunk_mask, runs

from .toy_decoder import Array, full_mask

BLOCKS = st.lists(st.integers(0, 2), min_size=1, max_size=24)
WINDOWS = st.sampled_from([None, 1, 2, 5, 30])


@given(blocks=BLOCKS, window=WINDOWS, data=st.data())
def test_a_chunk_sees_what_it_would_in_one_piece(
    blocks: list[int], window: int | None, data: st.DataObject
) -> None:
    """Any chunk between two borders, in a group of any size. Oracle: the definition, by tokens.

    Everything else is hidden: the rest of the history, and padding, diagonal included.
    """
    numbered, count = runs(np.array(blocks), len(blocks)), len(blocks)
    cuts = np.flatnonzero(borders(numbered)).tolist()
    begin = data.draw(st.sampled_from(cuts[:-1]))
    end = data.draw(st.sampled_from([cut for cut in cuts if cut > begin]))
    history, room = begin + data.draw(st.integers(0, 3)), end - begin + data.draw(st.integers(0, 3))
    mask = chunk_mask((room, history), begin, end - begin, numbered[begin:end], window)
    expected = full_mask(count, blocks, window)[begin:end, :end]
    found = np.concatenate([mask[: end - begin, :begin],
                            mask[: end - begin, history : history + end - begin]], 1)  # fmt: skip
    np.testing.assert_array_equal(found, expected)
    rest = mask.copy()
    rest[: end - begin, :begin] = rest[: end - begin, history : history + end - begin] = HIDDEN
    assert (rest == HIDDEN).all()
    diagonal = mask[:, history:].diagonal()
    np.testing.assert_array_equal(diagonal == 0, np.arange(room) < end - begin)


@given(
    windows=st.sets(WINDOWS, min_size=1),
    start=st.integers(0, 9),
    steps=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_tokens_one_by_one_see_what_they_would_in_one_piece(
    windows: set[int | None], start: int, steps: int, sizes: list[int]
) -> None:
    """In groups whose histories grow. Oracle: the definition, by tokens."""
    histories = np.cumsum([*sizes, 30]).tolist()
    masks = StepMasks(windows, np.dtype(np.float32))
    for filled in range(start, start + steps):
        history = next(h for h in histories if h >= filled)
        made = masks.of(1, history, filled)
        for window in windows:
            expected = full_mask(filled + 1, [0] * (filled + 1), window)[filled]
            found = np.concatenate([made[window][0, 0, :filled], made[window][0, 0, -1:]])
            np.testing.assert_array_equal(found, expected)
            assert (made[window][0, 0, filled:-1] == HIDDEN).all()
        masks.advance(filled + 1)


@given(blocks=BLOCKS, chunk=st.integers(1, 6), longest=st.integers(0, 24), start=st.integers(0, 6))
def test_a_prompt_is_cut_where_it_can_be(
    blocks: list[int], chunk: int, longest: int, start: int
) -> None:
    """Chunks are short enough, cut no block and find a history, or else there is no such cut.

    Oracle: a search over all cuts.
    """
    assume(start <= longest)
    numbered = runs(np.array(blocks), len(blocks))
    possible = _search(numbered, chunk, longest - start)
    try:
        ends = chunk_ends(start, numbered, chunk, longest)
    except BudgetError:
        assert not possible
        return
    assert possible
    begins = [0, *ends[:-1]]
    assert ends[-1] == len(blocks)
    assert all(0 < end - begin <= chunk for begin, end in zip(begins, ends, strict=True))
    assert all(borders(numbered)[end] for end in ends)
    assert start + begins[-1] <= longest


def _search(blocks: Array, chunk: int, longest: int) -> bool:
    """Whether chunks can reach the end, by trying every border from every border."""
    count, allowed = len(blocks), borders(blocks)
    reached = {0}
    for begin in range(count):
        if begin in reached and begin <= longest:
            reached |= {end for end in range(begin + 1, min(begin + chunk, count) + 1)
                        if allowed[end]}  # fmt: skip
    return count in reached


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([0, 0], [0, 0]),
        ([5, 5, 0, 5], [2, 2, 0, 4]),
        ([1, 2, 2], [2, 3, 3]),
    ],
)
def test_blocks_that_do_not_touch_differ(blocks: list[int], expected: list[int]) -> None:
    """Oracle: numbered by hand; what matters is which are equal."""
    found = runs(np.array(blocks), len(blocks)).tolist()
    assert [a == b for a in found for b in found] == [a == b for a in expected for b in expected]
    assert [number > 0 for number in found] == [number > 0 for number in expected]
    assert runs(None, 2).tolist() == [0, 0]
    assert runs(np.array([], np.int64), 0).tolist() == []
