"""The language model at run time: chunked prefill and decoding over preallocated caches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np

from ..errors import BundleError, ContractError, UnsupportedModel
from ..language.layer_types import other_layers
from ..layer_files import OUTPUT, build_command, check_provenance
from .caches import Caches
from .layers import Layer, check_head, check_lengths, common_groups, open_layers
from .masks import StepMasks, borders, chunk_ends, chunk_mask, runs
from .steps import BoundStep, can_be_bound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..language_model import Embedding
    from .deployment import Deployment
    from .engine import Engine
    from .layers import LengthGroup

Array = np.ndarray[Any, Any]


class LanguageModel(Protocol):
    """Continues a prompt, or a batch of prompts of equal length.

    Its inputs are rows of the embedding or of the vision side, in float32.

    Attributes:
        context: Longest prompt and answer together, in tokens.
        max_batch: Largest batch; 1 where shapes are static.
    """

    context: int
    max_batch: int

    @property
    def filled(self) -> int:
        """Number of positions in the caches."""

    def resume(self, known: int, prompt: int, blocks: Array | None = None) -> int:
        """Keep the first `known` positions in the caches and drop the rest; return how many stay.

        Fewer than `known` stay if the rest of a prompt of `prompt` tokens could not be read behind
        them, if they would end inside a block of `blocks` (see `Prompt`), or if a layer keeps a
        state that is not known of so many.
        """

    def prefill(self, rows: Array, positions: Array, blocks: Array | None = None) -> Array:
        """Append rows ``[b, n, columns]`` at positions ``[r, n]`` to the caches.

        A `prefill` with another batch size b starts with empty caches. Columns are those of
        `Columns`; `blocks` is the part of `Prompt.blocks` that belongs to the rows.

        Returns:
            float32 ``[b, vocabulary]``: logits of the next tokens.
        """

    def decode(self, rows: Array, position: int) -> Array:
        """Append one row per prompt, ``[b, columns]``; returns logits as `prefill` does.

        The caller makes sure that the context has room.
        """


class Columns:
    """Where a row of the language model's input holds what.

    The state comes first; then, as wide, what is added behind each layer of
    `Deployment.added_layers`; then a row of each of `Deployment.tables`.

    Attributes:
        width: Of the state.
        added: Layer to the columns that are added behind it.
        tables: Name of a table to where its columns begin.
        count: Of all columns.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.width = deployment.embedding.shape[1]
        layers = enumerate(deployment.added_layers, 1)
        self.added = {layer: slice(n * self.width, (n + 1) * self.width) for n, layer in layers}
        self.count = self.width * (1 + len(self.added))
        self.tables: dict[str, int] = {}
        for table in deployment.tables:
            self.tables[table.name] = self.count
            self.count += table.shape[1]


class Embeddings:
    """The token embedding and further tables, read row by row from their files."""

    def __init__(self, deployment: Deployment) -> None:
        self.columns = Columns(deployment)
        self._tables = [
            (self.columns.tables.get(table.name, 0), _Table(deployment, table))
            for table in (deployment.embedding, *deployment.tables)
        ]

    def rows(self, ids: Array) -> Array:
        """Return float32 ``[n, columns]``; nothing is added behind layers.

        Raises:
            BundleError: A token id is beyond the vocabulary.
        """
        found = [(start, table.rows(ids)) for start, table in self._tables]
        if len(found) == 1 and self.columns.count == self.columns.width:
            return found[0][1]
        rows = np.zeros((len(ids), self.columns.count), np.float32)
        for start, columns in found:
            rows[:, start : start + columns.shape[1]] = columns
        return rows


class _Table:
    """One table on disk."""

    def __init__(self, deployment: Deployment, table: Embedding) -> None:
        path = deployment.table_file(table)
        self._values = np.memmap(path, ml_dtypes.bfloat16, "r", shape=table.shape)
        self._scale, self._name = np.float32(table.scale), table.name

    def rows(self, ids: Array) -> Array:
        if len(ids) and int(ids.max()) >= len(self._values):
            which = f"table `{self._name}`" if self._name else "embedding"
            raise BundleError(
                f"token {int(ids.max())} is beyond the {which}'s {len(self._values)} rows",
                hint="the tokenizer belongs to another model: convert again from one checkpoint",
            )
        rows: Array = self._values[ids].astype(np.float32) * self._scale
        return rows


class LayerModels:
    """Implements `LanguageModel` with layer models, run by an engine.

    All files must have shape groups of the same lengths; what they keep may differ.

    Args:
        deployment: The bundle that contains them.
        engine: Runs them.
        suffix: Suffix of the model files.

    Raises:
        BundleError: Files are missing, damaged, or built for other lengths than the manifest says.
    """

    def __init__(self, deployment: Deployment, engine: Engine, suffix: str) -> None:
        files, head = deployment.layer_files(suffix)
        deployment.check([*files, head])
        *sessions, self._head = open_layers(engine, [*files, head], deployment.progress)
        self._layers = [Layer.of(s, path) for s, path in zip(sessions, files, strict=True)]
        # Ascending, so that the first group that fits is the cheapest one.
        ordered = sorted(common_groups(self._layers), key=lambda g: (g.history, g.count))
        self._steps = [group for group in ordered if group.is_step]
        self._chunks = [group for group in ordered if not group.is_step]
        check_lengths(self._steps[-1:], self._chunks[-1:], deployment, files[0])
        state = self._steps[0].inputs["input"]
        check_head(self._head, head, state, deployment)
        self.columns = Columns(deployment)
        _check_columns(self._layers, deployment, self.columns)
        _check_described(self._layers, deployment)
        opened = zip([*files, head], [*sessions, self._head], strict=True)
        provenances = {path: getattr(session, "provenance", None) for path, session in opened}
        check_provenance(provenances, deployment.weights)
        self._dtype = state.dtype
        self._caches = self._empty_caches(1)
        self._masks = StepMasks({layer.spec.window for layer in self._layers}, state.dtype)
        self._can_be_bound = can_be_bound(self._layers, self._head) and not self.columns.added
        self._bound: BoundStep | None = None
        self.context = self._steps[-1].history + 1
        self.max_batch = sys.maxsize if getattr(sessions[0], "dynamic_batch", False) else 1

    @property
    def filled(self) -> int:
        """Number of positions in the caches."""
        return self._caches.filled

    def resume(self, known: int, prompt: int, blocks: Array | None = None) -> int:
        """Keep as much as leaves histories that groups have, for every chunk."""
        # A block may end in the last chunk alone, so its beginning must fit into a history.
        allowed = borders(runs(blocks, prompt))[: known + 1]
        longest = self._chunks[-1].history
        kept = self._caches.crop(int(np.flatnonzero(allowed[: longest + 1])[-1]))
        while not allowed[kept]:
            kept = self._caches.crop(int(np.flatnonzero(allowed[: kept + 1])[-1]))
        self._masks.forget()
        return kept

    def prefill(self, rows: Array, positions: Array, blocks: Array | None = None) -> Array:
        """Read rows in chunks, padding the last one."""
        batch, count, _ = rows.shape
        if batch != self._caches.batch:
            self._caches = self._empty_caches(batch)
        longest, numbered = self._chunks[-1], runs(blocks, count)
        begin = 0
        for end in chunk_ends(self.filled, numbered, longest.count, longest.history):
            part = slice(begin, end)
            last = self._chunk(rows[:, part], positions[:, part], numbered[part])
            self._caches.remember()
            begin = end
        self._masks.forget()
        return self._logits(last)

    def decode(self, rows: Array, position: int) -> Array:
        """Append one row per prompt, in the smallest group whose history holds the caches."""
        group = next(g for g in self._steps if g.history >= self.filled)
        masks = self._masks.of(len(rows), group.history, self.filled)
        if self._can_be_bound and len(rows) == 1:
            logits = self._step(group, masks).run(rows[0, : self.columns.width], position)
        else:
            indices = np.full(group.inputs["indices"].shape, position, np.uint32)
            logits = self._logits(self._run(group, rows[:, None], indices, masks, 1))
        self._masks.advance(self.filled)  # the next token sees the one just added
        return logits

    def _step(self, group: LengthGroup, masks: Mapping[int | None, Array]) -> BoundStep:
        """Return the step over the caches as they are; another group's is dropped."""
        bound = self._bound
        if bound is None or bound.index != group.index or bound.caches is not self._caches:
            self._bound = bound = BoundStep(self._layers, self._head, self._caches, group, masks)
        return bound

    def _empty_caches(self, batch: int) -> Caches:
        return Caches(self._layers, self._steps[-1].index, batch)

    def _chunk(self, rows: Array, positions: Array, blocks: Array) -> Array:
        """Run a chunk, padded to a group's length, through all layers; return the last row."""
        batch, count, width = rows.shape
        group = next(g for g in self._chunks if g.history >= self.filled and g.count >= count)
        history, room = group.history, group.count
        padded = np.zeros((batch, room, width), np.float32)
        padded[:, :count] = rows
        indices = np.zeros(group.inputs["indices"].shape, np.uint32)
        if len(positions) not in (1, len(indices)):
            raise ContractError(
                f"the prompt has {len(positions)} rows of positions; the layers take {len(indices)}"
            )
        indices[:, :count] = positions
        masks = {}
        for window in {layer.spec.window for layer in self._layers}:
            mask = chunk_mask((room, history), self.filled, count, blocks, window)
            masks[window] = np.repeat(mask[None].astype(self._dtype), batch, 0)
        state = self._run(group, padded, indices, masks, count)
        return state[:, count - 1 : count]

    def _run(
        self,
        group: LengthGroup,
        rows: Array,
        indices: Array,
        masks: Mapping[int | None, Array],
        count: int,
    ) -> Array:
        """Run every layer of a group; keep what it made of the first `count` rows."""
        state = rows[..., : self.columns.width].astype(self._dtype)
        for number, layer in enumerate(self._layers):
            feed = {
                **self._caches.inputs(number, group.index, group.history),
                "indices": indices,
                "input": state,
                "mask": masks[layer.spec.window],
            }
            for port in layer.spec.inputs:
                start = self.columns.tables[port.table] + port.start
                columns = rows[..., start : start + port.width]
                feed[port.name] = np.ascontiguousarray(columns.astype(self._dtype))
            made = layer.session.run(None, feed, shape_group=group.index)
            outputs = dict(zip(layer.groups[group.index].outputs, made, strict=True))
            self._caches.keep(number, outputs, count)
            state = self._added(number, outputs[OUTPUT], rows)
        self._caches.advance(count)
        return state

    def _added(self, number: int, state: Array, rows: Array) -> Array:
        """Add what comes behind a layer; of text that is nothing."""
        columns = self.columns.added.get(number)
        if columns is None or not (added := rows[..., columns]).any():
            return state
        summed: Array = (state.astype(np.float32) + added).astype(self._dtype)
        return summed

    def _logits(self, state: Array) -> Array:
        (logits,) = self._head.run(None, {"input": np.ascontiguousarray(state)})
        return logits[:, 0].astype(np.float32)


def _check_columns(layers: Sequence[Layer], deployment: Deployment, columns: Columns) -> None:
    """Refuse layers that take columns which the bundle does not have, and the reverse.

    Raises:
        BundleError: Names layer and table.
    """
    widths = {table.name: table.shape[1] for table in deployment.tables}
    for layer in layers:
        for port in layer.spec.inputs:
            if port.start + port.width > widths.get(port.table, 0):
                raise BundleError(
                    f"{layer.path} takes columns {port.start} to {port.start + port.width} of the"
                    f" table `{port.table}`, which the bundle does not have",
                    hint="run the same `axcore convert` again, and then `axcore build`",
                )
    if beyond := [number for number in columns.added if not 0 <= number < len(layers)]:
        raise BundleError(
            f"{deployment.folder} has rows to add behind layer {beyond[0]};"
            f" the language model has {len(layers)} layers",
            hint="run the same `axcore convert` again",
        )


def _check_described(layers: Sequence[Layer], deployment: Deployment) -> None:
    """Refuse compiled layers that may not be plain: their files do not say what they keep.

    Raises:
        UnsupportedModel: The config says that layers are of other types.
    """
    if any(layer.described for layer in layers):
        return
    if others := other_layers(deployment.job.text_config, deployment.llm.kv_cache_len + 1):
        raise UnsupportedModel(
            f"{layers[0].path} does not say what its layer keeps; the language model has {others}",
            hint=f"run `{build_command(deployment.folder, '.onnx')}`, and use --backend onnx",
        )
