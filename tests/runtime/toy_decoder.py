"""A toy decoder with a layer of every sort, and the same modules run in one piece.

It stands in for models that are too large for tests: hidden states of 8, one head, random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from axcore import (
    Cache,
    Component,
    Decoder,
    DecoderLayer,
    Embedding,
    LlmBuildArgs,
    Port,
    Stage,
    TokenInput,
)
from axcore.bundle import Bundle, CheckpointRecord, Manifest, ModelRecord
from axcore.checkpoint import Checkpoint
from axcore.choices import resolve
from axcore.language_model import table_file
from axcore.model_card import Profile
from axcore.pipeline.build import run_toolchain
from axcore.progress import Silent
from axcore.request import Options
from axcore.runtime.deployment import EMBEDDING_FILE, Deployment
from axcore.toolchains.contract import BuildRequest, GraphFile
from axcore.toolchains.onnx import Onnx

Array = np.ndarray[Any, Any]

WIDTH, KEYS, VOCABULARY, TABLE = 8, 4, 32, 12
CHUNK, CACHE, HISTORIES = 6, 23, (6, 12)
WINDOW, TAPS = 4, 3
ADDED = (1, 4)  # layers behind which rows are added
HIDDEN = -65536.0


def attended(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(query @ keys.mT + mask, -1) @ values


class Attention(nn.Module):
    """Attention over rows that grow; positions are added to the keys."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v"):
            setattr(self, name, nn.Linear(WIDTH, KEYS, bias=False, device="meta"))
        self.o = nn.Linear(KEYS, WIDTH, bias=False, device="meta")

    def forward(
        self, k_cache: Tensor, v_cache: Tensor, indices: Tensor, state: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Decoder`."""
        key = self.k(state) + indices.sum(0)[:, None] / 8
        value = self.v(state)
        keys, values = torch.cat([k_cache, key], 1), torch.cat([v_cache, value], 1)
        seen = attended(self.q(state), keys, values, mask)
        return key, value, state + self.o(seen)


class Borrowing(nn.Module):
    """Attention over the rows of another layer, which has added those of the tokens at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, KEYS, bias=False, device="meta")
        self.o = nn.Linear(KEYS, WIDTH, bias=False, device="meta")

    def forward(
        self, keys: Tensor, values: Tensor, indices: Tensor, state: Tensor, mask: Tensor
    ) -> Tensor:
        """See `DecoderLayer`; positions are not used."""
        return state + self.o(attended(self.q(state), keys, values, mask))


def valid_tokens(mask: Tensor) -> Tensor:
    """Read from the mask's diagonal which rows are tokens: ``[b, n]``, 1 or 0."""
    own = mask[..., mask.shape[2] - mask.shape[1] :]
    return (torch.diagonal(own, dim1=1, dim2=2) > HIDDEN / 2).float()


class Convolution(nn.Module):
    """A short convolution over tokens; the state is the last inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.empty(TAPS, WIDTH, device="meta"))

    def forward(
        self, past: Tensor, indices: Tensor, state: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Positions are not used."""
        count, tokens = state.shape[1], valid_tokens(mask)
        inputs = torch.cat([past, state * tokens[..., None]], 1)
        mixed = sum(inputs[:, tap : tap + count] * self.taps[tap] for tap in range(TAPS))
        last = tokens.sum(1).long()[:, None] + torch.arange(TAPS - 1)
        kept = torch.gather(inputs, 1, last[..., None].expand(-1, -1, WIDTH))
        return kept, state + mixed


class Recurrent(nn.Module):
    """A sum that decays from token to token."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.empty(WIDTH, device="meta"))
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False, device="meta")

    def forward(
        self, past: Tensor, indices: Tensor, state: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All tokens at once: token s is in the sum at t with the decay to the power t - s."""
        tokens = valid_tokens(mask)
        order = torch.cumsum(tokens, 1)
        apart = order[:, :, None] - order[:, None]
        share = torch.sigmoid(self.decay) ** apart.clamp(min=0)[..., None]
        share = share * ((apart >= 0) * tokens[:, None])[..., None]
        old = past[:, None] * torch.sigmoid(self.decay) ** order[..., None]
        sums = torch.einsum("btsw,bsw->btw", share, state * tokens[..., None]) + old
        return sums[:, -1], state + self.mix(sums)


class Informed(nn.Module):
    """Attention, with further columns per token."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.more = nn.Linear(3, WIDTH, bias=False, device="meta")

    def forward(
        self,
        k_cache: Tensor,
        v_cache: Tensor,
        indices: Tensor,
        state: Tensor,
        mask: Tensor,
        columns: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderLayer`."""
        given = state + self.more(columns)
        key, value, state = self.attention(k_cache, v_cache, indices, given, mask)
        return key, value, state


class Head(nn.Module):
    """A head applied to ``[1, 1, hidden]`` as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False, device="meta")

    def forward(self, state: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.lm_head(state)
        return logits


GROWING = (Cache("K_cache", (KEYS,)), Cache("V_cache", (KEYS,)))
SHARED = tuple(Cache(c.name, c.shape, shared=1) for c in GROWING)


def toy_layers() -> list[Stage | DecoderLayer]:
    """Return layers: each sort, plain ones between."""

    def stage(number: int, module: nn.Module, kind: str = "") -> Stage:
        return Stage(f"layers.{number}", module, f"layers.{number}.", kind)

    return [
        stage(0, Attention(), "plain"),
        DecoderLayer(stage(1, Attention(), "plain"), GROWING, window=WINDOW),
        DecoderLayer(stage(2, Convolution()), (Cache("past", (TAPS - 1, WIDTH), grows=False),)),
        DecoderLayer(
            stage(3, Recurrent()), (Cache("sum", (WIDTH,), grows=False, dtype="float32"),)
        ),
        DecoderLayer(
            stage(4, Informed(), "informed"), GROWING, inputs=(TokenInput("columns", "more", 2, 3),)
        ),
        DecoderLayer(stage(5, Borrowing()), SHARED, window=WINDOW),
        DecoderLayer(
            stage(6, Informed(), "informed"), GROWING, inputs=(TokenInput("columns", "more", 7, 3),)
        ),
    ]


@dataclass(frozen=True)
class ToyDecoder:
    """The built toy, and what it is made of.

    Attributes:
        deployment: The bundle with its layer models.
        decoder: What they were built from.
        weights: Of every stage, by name.
        embedding, table: float32, values of bfloat16.
    """

    deployment: Deployment
    decoder: Decoder
    weights: dict[str, Tensor]
    embedding: Array
    table: Array

    def logits(self, rows: Array, positions: Array, blocks: Sequence[int] | None = None) -> Array:
        """Return float32 ``[VOCABULARY]`` behind the last row: all at once, no history.

        Masks are written down token by token from the definition.
        """
        count = len(rows)
        masks = {
            window: torch.tensor(full_mask(count, blocks or [0] * count, window))[None]
            for window in {layer.window for layer in self.decoder.specs}
        }
        given = torch.tensor(rows)[None]
        state, made = given[..., :WIDTH], list[dict[str, Tensor]]()
        for number, layer in enumerate(self.decoder.specs):
            caches = [
                made[cache.shared][cache.name]
                if cache.shared is not None
                else torch.zeros(1, *((0,) if cache.grows else ()), *cache.shape)
                for cache in layer.caches
            ]
            inputs = [
                given[..., WIDTH * (1 + len(ADDED)) :][..., port.start : port.start + port.width]
                for port in layer.inputs
            ]
            outputs = self._run(
                layer.stage, *caches, torch.tensor(positions), state, masks[layer.window], *inputs
            )
            own = [cache.name for cache in layer.caches if cache.shared is None]
            made.append(dict(zip(own, outputs, strict=False)))
            state = outputs[-1]
            if number in ADDED:
                start = WIDTH * (1 + ADDED.index(number))
                state = state + given[..., start : start + WIDTH]
        return np.asarray(self._run(self.decoder.head, state[:, -1:])[0][0, 0])

    def _run(self, stage: Stage, *arguments: Tensor) -> tuple[Tensor, ...]:
        named = {name: self.weights[next(w.keys())] for name, w in stage.weights().items()}
        with torch.no_grad():
            result = torch.func.functional_call(stage.module, named, arguments)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def rows(self, ids: Sequence[int], added: Array | None = None) -> Array:
        """Return rows as the language model takes them."""
        ids = list(ids)
        more = np.zeros((len(ids), WIDTH * len(ADDED)), np.float32) if added is None else added
        return np.concatenate([self.embedding[ids], more, self.table[ids] * np.float32(0.5)], 1)


def full_mask(count: int, blocks: Sequence[int], window: int | None) -> Array:
    """Return who sees whom, float32 ``[count, count]``, from the definition."""
    mask = np.full((count, count), HIDDEN, np.float32)
    for token in range(count):
        for other in range(count):
            causal = other <= token and (window is None or token - other < window)
            low, high = min(token, other), max(token, other)
            together = blocks[token] > 0 and len(set(blocks[low : high + 1])) == 1
            if causal or together:
                mask[token, other] = 0
    return mask


def toy_decoder(
    folder: Path,
    layers: Sequence[Stage | DecoderLayer] | None = None,
    options: dict[str, str] | None = None,
    position_rows: int = 2,
) -> ToyDecoder:
    """Build the toy below `folder`.

    Args:
        folder: Gets ``checkpoint`` and ``bundle``.
        layers: Its layers; `toy_layers` unless they are given.
        options: Of the toolchain; computes in float32 unless they are given.
        position_rows: Rows of positions.
    """
    layers = toy_layers() if layers is None else layers
    head = Stage("post", Head(), "")
    source = folder / "checkpoint"
    weights = _checkpoint(source, layers, head)
    checkpoint = Checkpoint.open(source)
    decoder = Decoder("toy", tuple(layers), head, WIDTH, KEYS, position_rows, checkpoint)
    bundle, random = folder / "bundle", np.random.default_rng(5)
    if not bundle.exists():
        bundle.mkdir(parents=True)
        run_toolchain(
            Onnx(), bundle, _request(len(layers), options or {"exact": "float32"}),
            progress=Silent(), decoder=lambda: decoder,
        )  # fmt: skip
    embedding, table = (
        _rounded(random.standard_normal((VOCABULARY, width)).astype(np.float32))
        for width in (WIDTH, TABLE)
    )
    _bfloat16(embedding).tofile(bundle / EMBEDDING_FILE)
    _bfloat16(table).tofile(bundle / table_file("more"))
    return ToyDecoder(_deployment(bundle, len(layers)), decoder, weights, embedding, table)


def _checkpoint(folder: Path, layers: Sequence[Any], head: Stage) -> dict[str, Tensor]:
    torch.manual_seed(3)
    stages = [getattr(layer, "stage", layer) for layer in (*layers, head)]
    tensors = {
        key: torch.randn(dict(stage.module.named_parameters())[name].shape) / 4
        for stage in stages
        for name, weight in stage.weights().items()
        for key in weight.keys()
    }
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
        save_file(tensors, folder / "model.safetensors")
    return tensors


def _request(layers: int, options: dict[str, str]) -> BuildRequest:
    chosen = resolve("onnx", Onnx().options, options)
    ports = tuple(Port(f"rows.{layer}", (1, 2, WIDTH), layer=layer) for layer in ADDED)
    outputs = (Port("rows", (1, 2, WIDTH)), *ports)
    graph = GraphFile("vision", (), outputs, Component.calibration, "", 0, component="vision")
    lengths = LlmBuildArgs(CHUNK, CACHE, HISTORIES)
    return BuildRequest("toy", "", chosen, "", (graph,), lengths, layers)


def _deployment(folder: Path, layers: int) -> Deployment:
    request = _request(layers, {"exact": "float32"})
    profile = Profile(height=2, width=2, prefill_len=CHUNK, kv_cache_len=CACHE,
                      last_kv_cache_len=HISTORIES)  # fmt: skip
    embedding = Embedding("embed", (VOCABULARY, WIDTH))
    tables = (Embedding("more", (VOCABULARY, TABLE), scale=0.5, name="more"),)
    manifest = Manifest(
        schema=2, model=ModelRecord("toy", "", profile), checkpoint=CheckpointRecord(""),
        options=Options(), vision_only=False, toolchain="onnx", target="onnx",
        embedding=embedding, tables=tables, build=request, notes=(), files={},
    )  # fmt: skip
    job: Any = None  # no test of the layers asks the family
    return Deployment(
        Bundle(folder, manifest), job, request.graphs, request.llm, layers, embedding, frozenset(),
        job, tables=tables,
    )  # fmt: skip


def _bfloat16(values: Array) -> Array:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)


def _rounded(values: Array) -> Array:
    rounded: Array = _bfloat16(values).astype(np.float32)
    return rounded


@pytest.fixture(scope="module", name="toy")
def built_toy(once: Callable[..., Path]) -> ToyDecoder:
    """The toy with `toy_layers`, built once per run."""

    def make(out: Path) -> None:
        toy_decoder(out)

    return toy_decoder(once("toy-decoder", make))
