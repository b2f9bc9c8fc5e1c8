"""The language model at run time: chunked prefill and decoding over preallocated caches."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np

from ..errors import BundleError
from ..layer_files import build_command, check_provenance
from .engine import open_session, shape_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ..progress import Progress
    from .deployment import Deployment
    from .engine import Engine, Group, Session, Spec

Array = np.ndarray[Any, Any]
HIDDEN = -65536.0  # mask value of a column that must not be attended to; visible ones have 0


class LanguageModel(Protocol):
    """Continues a prompt, or a batch of prompts of equal length.

    Its inputs are rows of the embedding or of the vision side, in float32.

    Attributes:
        context: Longest prompt and answer together, in tokens.
        filled: Number of positions in the caches.
        max_batch: Largest batch; 1 where shapes are static.
    """

    context: int
    filled: int
    max_batch: int

    def resume(self, known: int, prompt: int) -> int:
        """Keep the first `known` positions in the caches and drop the rest; return how many stay.

        Fewer than `known` stay if the rest of a prompt of `prompt` tokens could not be read behind
        them.
        """

    def prefill(self, rows: Array, positions: Array) -> Array:
        """Append rows ``[b, n, hidden]`` at positions ``[r, n]`` to the caches.

        A `prefill` with another batch size b starts with empty caches.

        Returns:
            float32 ``[b, vocabulary]``: logits of the next tokens.
        """

    def decode(self, rows: Array, position: int) -> Array:
        """Append one row per prompt, ``[b, hidden]``; returns logits as `prefill` does.

        The caller makes sure that the context has room.
        """


class Embeddings:
    """The token embedding, read row by row from its file."""

    def __init__(self, deployment: Deployment) -> None:
        shape = deployment.embedding.shape
        path = deployment.embedding_file
        self._table = np.memmap(path, ml_dtypes.bfloat16, "r", shape=shape)
        self._scale = np.float32(deployment.embedding.scale)

    def rows(self, ids: Array) -> Array:
        """Return float32 ``[n, hidden]``.

        Raises:
            BundleError: A token id is beyond the vocabulary.
        """
        if len(ids) and int(ids.max()) >= len(self._table):
            raise BundleError(
                f"token {int(ids.max())} is beyond the embedding's {len(self._table)} rows",
                hint="the tokenizer belongs to another model: convert again from one checkpoint",
            )
        rows: Array = self._table[ids].astype(np.float32) * self._scale
        return rows


class LayerModels:
    """Implements `LanguageModel` with layer models, run by an engine.

    All files must have the same shape groups. The caches have the layout that sessions expect, so
    that a history is a view and not a copy.

    Args:
        deployment: The bundle that contains them.
        engine: Runs them.
        suffix: Suffix of the model files.

    Raises:
        BundleError: Files are missing, damaged, or built for other lengths than the manifest says.
    """

    def __init__(self, deployment: Deployment, engine: Engine, suffix: str) -> None:
        layers, head = deployment.layer_files(suffix)
        deployment.check([*layers, head])
        *self._layers, self._head = _opened(engine, [*layers, head], deployment.progress)
        groups = _common_groups(self._layers, layers)
        # Ascending, so that the first group that fits is the cheapest one.
        ordered = sorted(map(_Group.of, count(), groups), key=lambda g: (g.history, g.count))
        self._steps = [group for group in ordered if group.is_step]
        self._chunks = [group for group in ordered if not group.is_step]
        _check_lengths(self._steps[-1:], self._chunks[-1:], deployment, layers[0])
        state = self._steps[0].inputs["input"]
        _check_head(self._head, head, state, deployment)
        sessions = zip([*layers, head], [*self._layers, self._head], strict=True)
        provenances = {path: getattr(session, "provenance", None) for path, session in sessions}
        check_provenance(provenances, deployment.weights)
        self._state_dtype = state.dtype
        self._caches = self._empty_caches(1)
        self._mask: Array | None = None
        self.context = self._steps[-1].history + 1
        self.filled = 0
        self.max_batch = sys.maxsize if getattr(self._layers[0], "dynamic_batch", False) else 1

    def resume(self, known: int, prompt: int) -> int:
        """Keep as much as leaves, for the last chunk, a group whose history is long enough."""
        # The longest prompt is one chunk behind the longest history, a multiple of the chunk. So if
        # chunks from `known` on do not fit, those from the multiple before it do.
        chunk, longest = self._chunks[-1].count, self._chunks[-1].history
        last = known + (prompt - known - 1) // chunk * chunk
        self.filled = known if last <= longest else known // chunk * chunk
        if self.filled > longest:
            self.filled = 0
        return self.filled

    def prefill(self, rows: Array, positions: Array) -> Array:
        """Read rows in chunks, padding the last one."""
        batch, count, _ = rows.shape
        if batch != len(self._caches[0][0]):
            self._caches, self.filled = self._empty_caches(batch), 0
        chunk = self._chunks[-1].count
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            last = self._chunk(rows[:, part], positions[:, part])
        self._mask = None
        return self._logits(last)

    def decode(self, rows: Array, position: int) -> Array:
        """Append one row per prompt, in the smallest group whose history holds the caches."""
        group = next(g for g in self._steps if g.history >= self.filled)
        mask = self._step_mask(group, len(rows))
        indices = np.full(group.inputs["indices"].shape, position, np.uint32)
        state = self._run(group, rows[:, None].astype(self._state_dtype), indices, mask, 1)
        mask[:, 0, self.filled - 1] = 0  # the next token sees the one just added
        return self._logits(state)

    def _empty_caches(self, batch: int) -> list[tuple[Array, Array]]:
        """Return the keys and values of every layer."""
        spec = self._steps[-1].inputs["K_cache"]
        shape = (batch, *spec.shape[1:])
        return [(np.zeros(shape, spec.dtype), np.zeros(shape, spec.dtype)) for _ in self._layers]

    def _chunk(self, rows: Array, positions: Array) -> Array:
        """Run a chunk, padded to a group's length, through all layers; return the last row."""
        batch, count, width = rows.shape
        group = next(g for g in self._chunks if g.history >= self.filled and g.count >= count)
        history, room = group.history, group.count
        state = np.zeros((batch, room, width), self._state_dtype)
        state[:, :count] = rows
        indices = np.zeros(group.inputs["indices"].shape, np.uint32)
        indices[:, :count] = positions
        mask = np.full((room, history + room), HIDDEN, np.float32)
        mask[:count, : self.filled] = 0
        mask[:count, history:][np.tril(np.ones((count, room), bool))] = 0
        masks = np.repeat(mask[None].astype(self._state_dtype), batch, 0)
        state = self._run(group, state, indices, masks, count)
        return state[:, count - 1 : count]

    def _run(self, group: _Group, state: Array, indices: Array, mask: Array, count: int) -> Array:
        """Run every layer of a group and keep the first `count` rows of its keys and values."""
        history, end = group.history, self.filled + count
        place, batch = slice(self.filled, end), len(state)
        for session, (keys, values) in zip(self._layers, self._caches, strict=True):
            old = group.placeholder(batch) or (keys[:, :history], values[:, :history])
            # For a single prompt, the usual case, the views are contiguous and nothing is copied.
            feed = dict(zip(_INPUTS, (*map(np.ascontiguousarray, old), indices, state, mask),
                            strict=True))  # fmt: skip
            new_keys, new_values, state = session.run(None, feed, shape_group=group.index)
            keys[:, place], values[:, place] = new_keys[:, :count], new_values[:, :count]
        self.filled = end
        return state

    def _step_mask(self, group: _Group, batch: int) -> Array:
        """Return the mask for decoding one token; it is updated in place from step to step."""
        shape = (batch, 1, group.history + 1)
        if self._mask is None or self._mask.shape != shape:
            self._mask = np.full(shape, HIDDEN, self._state_dtype)
            self._mask[..., : self.filled] = 0
            self._mask[..., -1] = 0
        return self._mask

    def _logits(self, state: Array) -> Array:
        (logits,) = self._head.run(None, {"input": np.ascontiguousarray(state)})
        return logits[:, 0].astype(np.float32)


_INPUTS = ("K_cache", "V_cache", "indices", "input", "mask")


@dataclass(frozen=True)
class _Group:
    """A shape group: its number, its inputs and the length of its history."""

    index: int
    inputs: Mapping[str, Spec]
    history: int

    @classmethod
    def of(cls, index: int, group: Group) -> _Group:
        rows, columns = group.inputs["mask"].shape[1:]
        return cls(index, group.inputs, columns - rows)

    def placeholder(self, batch: int) -> tuple[Array, Array] | None:
        """Return the inputs that replace the caches if there is no history, else None."""
        if self.history:
            return None
        first, second = (self.inputs[name] for name in _INPUTS[:2])
        return tuple(np.zeros((batch, *s.shape[1:]), s.dtype) for s in (first, second))  # type: ignore[return-value]

    @property
    def count(self) -> int:
        """Number of tokens in one run."""
        return int(self.inputs["input"].shape[1])

    @property
    def is_step(self) -> bool:
        """Whether it decodes a single token."""
        return self.inputs["indices"].shape == (1, 1)


def _opened(engine: Engine, files: Sequence[Path], progress: Progress) -> Iterator[Session]:
    """Yield the session of every file."""
    with progress.task("load language model", len(files), "files") as task:
        for path in files:
            yield open_session(engine, path)
            task.advance()


def _common_groups(sessions: Sequence[Session], files: Sequence[Path]) -> list[Group]:
    """Return the shape groups that all layers have."""
    groups = shape_groups(sessions[0])
    if set(groups[0].inputs) != set(_INPUTS):
        raise BundleError(
            f"{files[0]} is not a layer model: it takes {', '.join(groups[0].inputs)}",
            hint=_rebuild(files[0]),
        )
    for session, path in zip(sessions, files, strict=True):
        if shape_groups(session) != groups:
            raise BundleError(
                f"{path} has other inputs or shapes than {files[0].name} in the same folder",
                hint=_rebuild(path),
            )
    return groups


def _check_lengths(
    steps: Sequence[_Group], chunks: Sequence[_Group], deployment: Deployment, file: Path
) -> None:
    """Compare the lengths of the layer models with the manifest."""
    llm = deployment.llm
    found = [group.count for group in chunks] + [group.history for group in (*chunks, *steps)]
    wanted = [llm.prefill_len, max(llm.last_kv_cache_len, default=0), llm.kv_cache_len]
    if found != wanted:
        raise BundleError(
            f"{file} was built for a chunk, history and cache of {_counted(found)} tokens;"
            f" the bundle says {_counted(wanted)}",
            hint=_rebuild(file),
        )
    width, expected = steps[0].inputs["input"].shape[-1], deployment.embedding.shape[1]
    if width != expected:
        raise BundleError(
            f"{file} takes states of {width}; the embedding is {expected} wide",
            hint=f"the files are of different models: {_rebuild(file)}",
        )


def _check_head(head: Session, file: Path, state: Spec, deployment: Deployment) -> None:
    """Compare the head with the output of the layers and the rows of the embedding."""
    inputs, outputs = shape_groups(head)[0]
    rows, sizes = deployment.embedding.shape[0], [spec.shape[-1] for spec in outputs.values()]
    if inputs != {"input": state} or len(sizes) != 1 or sizes[0] < rows:
        taken = ", ".join(f"{name} {spec.dtype} {spec.shape}" for name, spec in inputs.items())
        raise BundleError(
            f"{file} takes {taken} and returns {', '.join(map(str, sizes))} values\n"
            f"  the layers give {state.dtype} {state.shape}, the vocabulary has {rows} tokens",
            hint=_rebuild(file),
        )


def _counted(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths))


def _rebuild(file: Path) -> str:
    return f"run `{build_command(file.parent, file.suffix)}`, which replaces it"
