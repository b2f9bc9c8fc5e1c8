"""A host of decoder layers in plain torch: caches, masks and chunks, as `DecoderLayer` has it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from axcore.checkpoint.quantised import float_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from axcore import Cache, Decoder
    from axcore.component import Stage

AWAY = -65536.0


class Host:
    """Runs a decoder with the weights of its checkpoint, in float32.

    Args:
        decoder: What is run.
        padding: Rows of padding behind every chunk of more than one token.
    """

    def __init__(self, decoder: Decoder, padding: int = 0) -> None:
        self.decoder, self.padding = decoder, padding
        self.layers = [self._loaded(spec.stage) for spec in decoder.specs]
        self.head = self._loaded(decoder.head)
        self.caches = [[_empty(cache) for cache in spec.caches] for spec in decoder.specs]
        self.blocks = torch.zeros(0, dtype=torch.int64)

    def _loaded(self, stage: Stage) -> nn.Module:
        def read(key: str) -> Tensor:
            return float_tensor(self.decoder.checkpoint, key).float()

        with self.decoder.checkpoint:
            weights = {name: w.resolve(read) for name, w in stage.weights().items()}
        module = copy.deepcopy(stage.module)
        module.load_state_dict(weights, assign=True)
        return module.eval()

    def run(self, rows: Tensor, places: Tensor, blocks: Tensor | None = None) -> Tensor:
        """Continue with a chunk; return the logits of each of its tokens.

        Args:
            rows: float32 ``[n, hidden]``.
            places: int64 ``[r, n]``.
            blocks: See `Prompt.blocks`.
        """
        count = len(rows)
        padding = self.padding if count > 1 else 0
        given = torch.zeros(count, dtype=torch.int64) if blocks is None else blocks
        self.blocks = torch.cat([self.blocks, given])
        state = torch.nn.functional.pad(rows, (0, 0, 0, padding), value=3.0)[None]
        places = torch.nn.functional.pad(places, (0, padding))
        with torch.no_grad():
            for index, (spec, layer) in enumerate(
                zip(self.decoder.specs, self.layers, strict=True)
            ):
                mask = self._mask(count, padding, spec.window)
                *made, state = layer(*self.caches[index], places, state, mask)
                self.caches[index] = [
                    torch.cat([old, new[:, :count]], 1) if cache.grows else new
                    for cache, old, new in zip(spec.caches, self.caches[index], made, strict=True)
                ]
            return torch.cat([self.head(row[None, None]) for row in state[0, :count]])[:, 0]

    def _mask(self, count: int, padding: int, window: int | None) -> Tensor:
        total = len(self.blocks)
        seen = torch.full((count + padding, total + padding), AWAY)
        column = torch.arange(total)
        for row in range(count):
            own = total - count + row
            sees = (column <= own) & (column > own - (window or total))
            block = int(self.blocks[own])
            sees |= (self.blocks == block) & (block > 0)
            seen[row, :total][sees] = 0
        return seen[None]


def _empty(cache: Cache) -> Tensor:
    return torch.zeros((1, 0, *cache.shape) if cache.grows else (1, *cache.shape))


def answers(host: Host, rows: Tensor, places: Tensor, chunks: Sequence[int]) -> Tensor:
    """Run a prompt in chunks of these lengths; return the logits of every token."""
    parts, start = [], 0
    for length in chunks:
        part = slice(start, start + length)
        parts.append(host.run(rows[part], places[:, part]))
        start += length
    assert start == len(rows)
    return torch.cat(parts)
