"""The language model at run time: chunked prefill and decoding over preallocated caches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np

from ..errors import BundleError
from .engine import open_session, shape_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .deployment import Deployment
    from .engine import Engine, Group, Session, Spec

Array = np.ndarray[Any, Any]
HIDDEN = -65536.0  # what the mask holds for a column that must not be seen; 0 shows it


class LanguageModel(Protocol):
    """Whatever can continue a prompt. Rows are what embedding or vision side give, in float32.

    Attributes:
        max_prompt: Tokens of the longest prompt.
        context: Positions that prompt and answer share.
        filled: Positions that are in the caches.
    """

    max_prompt: int
    context: int
    filled: int

    def resume(self, known: int, prompt: int) -> int:
        """Forget all but the first of `known` positions; return how many stay.

        Fewer may stay than are known, where the rest of a prompt of `prompt` tokens could not be
        read behind them.
        """

    def prefill(self, rows: Array, positions: Array) -> Array:
        """Read ``[n, hidden]`` rows at positions ``[r, n]`` behind what is filled.

        Returns:
            float32 ``[vocabulary]``: logits of the next token.
        """

    def decode(self, row: Array, position: int) -> Array:
        """Read one row ``[hidden]``; returns as `prefill` does. The context must have room."""


class Embeddings:
    """The token embedding, read row by row from its file.

    Args:
        deployment: Where it is.
    """

    def __init__(self, deployment: Deployment) -> None:
        shape = deployment.embedding.shape
        path = deployment.embedding_file
        self._table = np.memmap(path, ml_dtypes.bfloat16, "r", shape=shape)
        self._scale = np.float32(deployment.embedding.scale)

    def rows(self, ids: Array) -> Array:
        """Return float32 ``[n, hidden]``.

        Raises:
            BundleError: A token is beyond the vocabulary.
        """
        if len(ids) and int(ids.max()) >= len(self._table):
            raise BundleError(
                f"token {int(ids.max())} is beyond the embedding's {len(self._table)} rows",
                hint="the tokenizer belongs to another model: convert again from one checkpoint",
            )
        rows: Array = self._table[ids].astype(np.float32) * self._scale
        return rows


@dataclass
class _Cache:
    keys: Array
    values: Array


class LayerModels:
    """The language model as layer models, behind an engine; `LanguageModel` says what it does.

    The groups of every file must be those of the first. Caches lie in memory in the form in which
    the sessions take them, so that a history is a view.

    Args:
        deployment: Where they are.
        engine: What runs them.
        suffix: Of the files that it reads.

    Raises:
        BundleError: Files are missing, damaged, or of other lengths than the manifest says.
    """

    def __init__(self, deployment: Deployment, engine: Engine, suffix: str) -> None:
        layers, head = deployment.layer_files(suffix)
        self._layers = [open_session(engine, path) for path in layers]
        self._head = open_session(engine, head)
        groups = _common_groups(self._layers, layers, deployment)
        ordered = sorted(map(_Group.of, count(), groups), key=lambda group: group.history)
        self._steps = [group for group in ordered if group.is_step]
        self._chunks = [group for group in ordered if not group.is_step]
        _check_lengths(self._steps[-1:], self._chunks[-1:], deployment, layers[0])
        cache, state = (self._steps[-1].inputs[name] for name in ("K_cache", "input"))
        self._state_dtype = state.dtype
        self._caches = [
            _Cache(*(np.zeros(cache.shape, cache.dtype) for _ in range(2))) for _ in layers
        ]
        self.max_prompt = self._chunks[-1].history + self._chunks[-1].count
        self.context = self._steps[-1].history + 1
        self.filled = 0
        self._mask: Array | None = None

    def resume(self, known: int, prompt: int) -> int:
        """Keep what chunks can follow: the last one must find a group with room for its history."""
        chunk, longest = self._chunks[-1].count, self._chunks[-1].history
        last = known + (prompt - known - 1) // chunk * chunk
        self.filled = known if last <= longest else known // chunk * chunk
        if self.filled > longest:
            self.filled = 0
        self._mask = None
        return self.filled

    def prefill(self, rows: Array, positions: Array) -> Array:
        """Read rows in chunks, padding the last one."""
        chunk = self._chunks[-1].count
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            last = self._chunk(rows[part], positions[:, part])
        self._mask = None
        return self._logits(last)

    def decode(self, row: Array, position: int) -> Array:
        """Read one row behind the smallest cache that holds what is filled."""
        group = next(g for g in self._steps if g.history >= self.filled)
        mask = self._step_mask(group)
        state = row.reshape(1, 1, -1).astype(self._state_dtype)
        indices = np.full(group.inputs["indices"].shape, position, np.uint32)
        state = self._run(group, state, indices, mask, 1)
        if self.filled <= group.history:
            mask[0, 0, self.filled - 1] = 0
        return self._logits(state)

    def _chunk(self, rows: Array, positions: Array) -> Array:
        """Run one chunk through all layers; return the state of its last row."""
        group = next(g for g in self._chunks if g.history >= self.filled)
        count, history, room = len(rows), group.history, group.count
        state = np.zeros(group.inputs["input"].shape, self._state_dtype)
        state[0, :count] = rows
        indices = np.zeros(group.inputs["indices"].shape, np.uint32)
        indices[:, :count] = positions
        mask = np.full(group.inputs["mask"].shape, HIDDEN, np.float32)
        mask[0, :count, : self.filled] = 0
        mask[0, :, history:][np.tril(np.ones((room, room), bool))] = 0
        mask[0, count:] = HIDDEN
        state = self._run(group, state, indices, mask.astype(self._state_dtype), count)
        return state[:, count - 1 : count]

    def _run(self, group: _Group, state: Array, indices: Array, mask: Array, count: int) -> Array:
        """Run every layer of a group and keep the first `count` rows of its keys and values."""
        history, end = group.history, self.filled + count
        place = slice(self.filled, end)
        for session, cache in zip(self._layers, self._caches, strict=True):
            old = group.placeholder or (cache.keys[:, :history], cache.values[:, :history])
            feed = dict(zip(_INPUTS, (*old, indices, state, mask), strict=True))
            keys, values, state = session.run(None, feed, shape_group=group.index)
            cache.keys[:, place], cache.values[:, place] = keys[:, :count], values[:, :count]
        self.filled = end
        return state

    def _step_mask(self, group: _Group) -> Array:
        """Return the mask of a single token, kept from step to step."""
        shape = group.inputs["mask"].shape
        if self._mask is None or self._mask.shape != shape:
            self._mask = np.full(shape, HIDDEN, self._state_dtype)
            self._mask[0, 0, : self.filled] = 0
            self._mask[0, 0, -1] = 0
        return self._mask

    def _logits(self, state: Array) -> Array:
        (logits,) = self._head.run(None, {"input": np.ascontiguousarray(state)})
        return logits.reshape(-1).astype(np.float32)


_INPUTS = ("K_cache", "V_cache", "indices", "input", "mask")


@dataclass(frozen=True)
class _Group:
    """A shape group: its number, what it takes, and in place of a history, where it has none."""

    index: int
    inputs: Mapping[str, Spec]
    history: int
    placeholder: tuple[Array, Array] | None

    @classmethod
    def of(cls, index: int, group: Group) -> _Group:
        rows, columns = group.inputs["mask"].shape[1:]
        specs = [group.inputs[name] for name in _INPUTS[:2]]
        first, second = (np.zeros(spec.shape, spec.dtype) for spec in specs)
        history = columns - rows
        return cls(index, group.inputs, history, None if history else (first, second))

    @property
    def count(self) -> int:
        """Tokens that it takes."""
        return int(self.inputs["input"].shape[1])

    @property
    def is_step(self) -> bool:
        """Whether it decodes a single token."""
        return self.inputs["indices"].shape == (1, 1)


def _common_groups(
    sessions: Sequence[Session], files: Sequence[Path], deployment: Deployment
) -> list[Group]:
    """Return the shape groups that all layers have."""
    groups = shape_groups(sessions[0])
    for session, path in zip(sessions, files, strict=True):
        if set(groups[0].inputs) != set(_INPUTS) or shape_groups(session) != groups:
            raise BundleError(
                f"{path} has other inputs or shapes than a layer beside {files[0].name}",
                hint=_rebuild(deployment),
            )
    return groups


def _check_lengths(
    steps: Sequence[_Group], chunks: Sequence[_Group], deployment: Deployment, file: Path
) -> None:
    """Hold the lengths of the layer models against the manifest."""
    llm = deployment.llm
    found = [group.count for group in chunks] + [group.history for group in steps]
    if found != [llm.prefill_len, llm.kv_cache_len]:
        raise BundleError(
            f"{file} was built for chunks and caches of {' and '.join(map(str, found))} tokens;"
            f" the bundle says {llm.prefill_len} and {llm.kv_cache_len}",
            hint=_rebuild(deployment),
        )
    width, expected = steps[0].inputs["input"].shape[-1], deployment.embedding.shape[1]
    if width != expected:
        raise BundleError(
            f"{file} takes states of {width}; the embedding is {expected} wide",
            hint=f"the files are of different models: {_rebuild(deployment)}",
        )


def _rebuild(deployment: Deployment) -> str:
    return f"build {deployment.folder} again with `axcore build`"
