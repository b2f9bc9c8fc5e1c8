"""Which tokens see which: masks of layer models, and where a prompt may be cut into chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BudgetError

Array = np.ndarray[Any, Any]
HIDDEN = -65536.0  # mask value of a column that must not be attended to; visible ones have 0


def chunk_mask(
    shape: tuple[int, int], before: int, count: int, blocks: Array, window: int | None
) -> Array:
    """Return the mask of a chunk, float32 ``[room, history + room]``.

    Rows and columns of padding are hidden altogether.

    Args:
        shape: ``(room, history)``: the group's chunk length and history length.
        before: Tokens in the caches.
        count: Tokens of the chunk; the rest of `room` is padding.
        blocks: int64 ``[count]``: tokens with the same number above 0 see each other.
        window: How many tokens a token sees, itself included; None for all before it.
    """
    room, history = shape
    tokens = np.arange(count)[:, None]
    columns = np.concatenate([np.arange(before) - before, np.arange(count)])
    seen = columns <= tokens
    # A block lies within one chunk, so no token of the history is in it.
    seen[:, before:] |= (blocks[:, None] == blocks) & (blocks > 0)
    if window is not None:  # it hides what is far behind, of a block too
        seen &= columns > tokens - window
    mask = np.full((room, history + room), HIDDEN, np.float32)
    mask[:count, :before][seen[:, :before]] = 0
    mask[:count, history : history + count][seen[:, before:]] = 0
    return mask


class StepMasks:
    """Masks for decoding token after token, one per window; each is changed in place.

    Args:
        windows: The windows that layers have.
        dtype: Of the masks.
    """

    def __init__(self, windows: set[int | None], dtype: np.dtype[Any]) -> None:
        self._windows, self._dtype = windows, dtype
        self._masks: dict[int | None, Array] = {}
        self._filled = False

    def of(self, batch: int, history: int, filled: int) -> dict[int | None, Array]:
        """Return the masks ``[batch, 1, history + 1]`` of a token behind `filled` others."""
        shape = (batch, 1, history + 1)
        if any(mask.shape != shape for mask in self._masks.values()) or not self._masks:
            self._masks = {w: np.empty(shape, self._dtype) for w in self._windows}
            self._filled = False
        if not self._filled:
            for window, mask in self._masks.items():
                first = 0 if window is None else max(0, filled - window + 1)
                mask[:] = HIDDEN
                mask[..., first:filled] = 0
                mask[..., -1] = 0
            self._filled = True
        return self._masks

    def advance(self, filled: int) -> None:
        """Show the token just added, as there are `filled` now, and hide what leaves a window."""
        for window, mask in self._masks.items():
            if filled < mask.shape[-1]:
                mask[..., filled - 1] = 0
            if window is not None and 0 <= filled - window < mask.shape[-1] - 1:
                mask[..., filled - window] = HIDDEN

    def forget(self) -> None:
        """Start anew with the next token, in the same arrays."""
        self._filled = False


def runs(blocks: Array | None, count: int) -> Array:
    """Number the blocks of `count` tokens, so that two that do not touch differ; 0 is none."""
    if blocks is None:
        return np.zeros(count, np.int64)
    begins = np.diff(blocks, prepend=blocks[:1]) != 0
    numbered: Array = np.where(blocks > 0, begins.cumsum() + 1, 0)
    return numbered


def borders(blocks: Array) -> Array:
    """Return where a prompt may be cut, ascending: bool ``[n + 1]``, never inside a block."""
    allowed = np.ones(len(blocks) + 1, bool)
    allowed[1:-1] = (blocks[1:] != blocks[:-1]) | (blocks[1:] == 0)
    return allowed


def chunk_ends(start: int, blocks: Array, chunk: int, longest: int) -> list[int]:
    """Cut the tokens behind `start` cached ones into chunks.

    Args:
        start: Tokens in the caches; the first of `blocks` is the one behind them.
        blocks: See `runs`; int64 ``[n]``.
        chunk: Most tokens of a chunk.
        longest: Longest history that a chunk can have.

    Returns:
        Index in `blocks` behind the last token of each chunk.

    Raises:
        BudgetError: A block is longer than a chunk, or the tokens are more than fit.
    """
    allowed, count = borders(blocks), len(blocks)
    ends, begin = [], 0
    while count - begin > chunk:
        most = min(begin + chunk, longest - start)
        fitting = np.flatnonzero(allowed[begin + 1 : most + 1]) + begin + 1
        if not len(fitting):
            raise _too_long(blocks, begin, chunk, start + count, longest)
        begin = int(fitting[-1])
        ends.append(begin)
    return [*ends, count]


def _too_long(blocks: Array, begin: int, chunk: int, count: int, longest: int) -> BudgetError:
    lengths = np.bincount(blocks[begin:])[1:] if blocks[begin:].any() else np.zeros(1, int)
    if (most := int(lengths.max(initial=0))) > chunk:
        return BudgetError(
            f"{most} tokens of the prompt see each other; a chunk has {chunk}",
            hint=f"convert with --prefill-len {most} or more",
        )
    return BudgetError(
        f"the prompt has {count} tokens; these layer models read {longest + chunk}"
        + (", fewer where tokens that see each other meet the end of a chunk"
           if lengths.any() else ""),
        hint="shorten it, or convert with a longer --last-kv-cache-len",
    )  # fmt: skip
