"""The shape groups of a layer model: which lengths its inputs may have together.

The order is the board's: one token after a full cache, a first chunk without history, then chunks
behind ever longer histories. Further groups follow at the end, where no reader of the board's
meets them: one token after a shorter cache spares most of the work early in an answer, a shorter
chunk the padding at the end of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...component import Shape
    from ...language_model import Decoder
    from ..contract import BuildRequest

LAYER_INPUTS = ("K_cache", "V_cache", "indices", "input", "mask")
LAYER_OUTPUTS = ("K_cache_out", "V_cache_out", "output")
HEAD_INPUTS, HEAD_OUTPUTS = ("input",), ("output",)
_SHORTEST_CACHE = 256
_CHUNK_STEP = 32  # tokens of padding cost little more than this is worth


@dataclass(frozen=True)
class Lengths:
    """What sizes the groups of every layer: P, C, the histories, and the widths D and H.

    With `dynamic_batch` every first axis but that of the positions may be of any length, which no
    board can do.
    """

    chunk: int
    cache: int
    histories: tuple[int, ...]
    cache_width: int
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
            decoder.cache_width,
            decoder.width,
            decoder.position_rows,
            dynamic_batch,
        )

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups of a layer model, each with the shapes of its inputs and outputs."""
        caches = [_SHORTEST_CACHE << n for n in range(self.cache.bit_length())]
        histories, counts = (0, *self.histories), range(_CHUNK_STEP, self.chunk, _CHUNK_STEP)
        return [
            self._step(self.cache),
            *(self._chunk(history, self.chunk) for history in histories),
            *(self._step(cache) for cache in caches if cache < self.cache),
            *(self._chunk(history, count) for history in histories for count in counts),
        ]

    def _step(self, cache: int) -> dict[str, Any]:
        return self._group(cache, 1, 1)

    def _chunk(self, history: int, count: int) -> dict[str, Any]:
        group = self._group(history, count, self.position_rows)
        if history == 0:
            caches = LAYER_INPUTS[:2]
            group["empty"] = {name: group["inputs"][name] for name in caches}
            # The compiler knows no empty tensor, so the board's first group takes one row.
            group["inputs"] |= dict.fromkeys(caches, (1, 1, self.width))
        return group

    def _group(self, history: int, count: int, rows: int) -> dict[str, Any]:
        cached, made = (1, history, self.cache_width), (1, count, self.cache_width)
        state: Shape = (1, count, self.width)
        inputs = (cached, cached, (rows, count), state, (1, count, history + count))
        return {
            "inputs": dict(zip(LAYER_INPUTS, inputs, strict=True)),
            "outputs": dict(zip(LAYER_OUTPUTS, (made, made, state), strict=True)),
            "dynamic": [name for name in LAYER_INPUTS + LAYER_OUTPUTS if name != "indices"]
            if self.dynamic_batch
            else [],
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
