"""The shape groups of a layer model: which lengths its inputs may have together.

The order is the board's: one token after a full cache, a first chunk without history, then chunks
behind ever longer histories. Further groups follow at the end, where no reader of the board's
meets them: one token after a shorter cache spares most of the work early in an answer, a shorter
chunk the padding at the end of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...layer_files import OUTPUT, SHARED_INPUTS

if TYPE_CHECKING:
    from ...component import Shape
    from ...language_model import Decoder
    from ...layer_files import LayerSpec
    from ..contract import BuildRequest

HEAD_INPUTS, HEAD_OUTPUTS = ("input",), (OUTPUT,)
_SHORTEST_CACHE = 256
_CHUNK_STEP = 32  # tokens of padding cost little more than this is worth


@dataclass(frozen=True)
class Lengths:
    """What sizes the groups of every layer: P, C, the histories, and the width H.

    With `dynamic_batch` every first axis but that of the positions may be of any length, which no
    board can do.
    """

    chunk: int
    cache: int
    histories: tuple[int, ...]
    width: int
    position_rows: int
    dynamic_batch: bool

    @classmethod
    def of(cls, request: BuildRequest, decoder: Decoder, *, dynamic_batch: bool) -> Lengths:
        """Read them from a request and the model."""
        llm = request.llm
        return cls(
            llm.prefill_len,
            llm.kv_cache_len,
            tuple(llm.last_kv_cache_len),
            decoder.width,
            decoder.position_rows,
            dynamic_batch,
        )

    def groups(self, layer: LayerSpec) -> list[dict[str, Any]]:
        """Return the groups of a layer model, each with the shapes of its inputs and outputs."""
        caches = [_SHORTEST_CACHE << n for n in range(self.cache.bit_length())]
        histories, counts = (0, *self.histories), range(_CHUNK_STEP, self.chunk, _CHUNK_STEP)
        return [
            self._step(layer, self.cache),
            *(self._chunk(layer, history, self.chunk) for history in histories),
            *(self._step(layer, cache) for cache in caches if cache < self.cache),
            *(self._chunk(layer, history, count) for history in histories for count in counts),
        ]

    def example(self, layer: LayerSpec) -> list[tuple[Shape, tuple[int, ...]]]:
        """Return a shape to trace each input with, and the axes whose lengths may change."""
        batch = 2 if self.dynamic_batch else 1
        one, other = self.examples(layer)
        found = []
        for name, shape in one["inputs"].items():
            batched = name in one["dynamic"]
            axes = [axis for axis, n in enumerate(shape) if n != other["inputs"][name][axis]]
            sized = (batch, *shape[1:]) if batched else shape
            found.append((sized, (0, *axes) if batched else tuple(axes)))
        return found

    def examples(self, layer: LayerSpec) -> list[dict[str, Any]]:
        """Return two groups that differ in every length."""
        return [self._group(layer, h, n, self.position_rows) for h, n in ((5, 3), (7, 4))]

    def _step(self, layer: LayerSpec, cache: int) -> dict[str, Any]:
        return self._group(layer, cache, 1, 1)

    def _chunk(self, layer: LayerSpec, history: int, count: int) -> dict[str, Any]:
        group = self._group(layer, history, count, self.position_rows)
        grown = [cache.name for cache in layer.own if cache.grows]
        if history == 0 and grown:
            group["empty"] = {name: group["inputs"][name] for name in grown}
            # The compiler knows no empty tensor, so the board's first group takes one row.
            group["inputs"] |= dict.fromkeys(grown, (1, 1, self.width))
        return group

    def _group(self, layer: LayerSpec, history: int, count: int, rows: int) -> dict[str, Any]:
        state: Shape = (1, count, self.width)
        every = ((rows, count), state, (1, count, history + count))
        inputs = {
            **layer.cache_shapes(history, count),
            **dict(zip(SHARED_INPUTS, every, strict=True)),
            **{port.name: (1, count, port.width) for port in layer.inputs},
        }
        outputs = {**layer.made_shapes(count), OUTPUT: state}
        dynamic = [name for name in (*inputs, *outputs) if name != "indices"]
        return {
            "inputs": inputs,
            "outputs": outputs,
            "dynamic": dynamic if self.dynamic_batch else [],
        }

    def head_groups(self, vocabulary: int) -> list[dict[str, Any]]:
        """Return the one group of the head."""
        return [
            {
                "inputs": {"input": (1, 1, self.width)},
                "outputs": {"output": (1, 1, vocabulary)},
                "dynamic": [*HEAD_INPUTS, *HEAD_OUTPUTS] if self.dynamic_batch else [],
            }
        ]


def layer_file(kind: str, chunk: int, layer: int) -> str:
    """Return the name of a layer's file, without suffix."""
    return f"{kind}_p{chunk}_l{layer}_together"


def head_file(kind: str) -> str:
    """Return the name of the head's file, without suffix."""
    return f"{kind}_post"
