"""Layers that cannot be right are refused by name: while building, and when files are opened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from axcore import (
    BudgetError,
    BundleError,
    Cache,
    ContractError,
    DecoderLayer,
    Embedding,
    Stage,
    TokenInput,
)
from axcore.graph.contract import check_decoder
from axcore.runtime import axengine_sim
from axcore.runtime.language import LayerModels
from axcore.runtime.masks import borders, chunk_ends, runs

from .toy_decoder import (
    CHUNK,
    GROWING,
    HISTORIES,
    SHARED,
    TABLE,
    VOCABULARY,
    Attention,
    Borrowing,
    Convolution,
    Informed,
    ToyDecoder,
    built_toy,
    toy_decoder,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["built_toy"]

TABLES = (Embedding("more", (VOCABULARY, TABLE), name="more"),)


def layer(module: torch.nn.Module, caches: tuple[Cache, ...], **more: Any) -> DecoderLayer:
    return DecoderLayer(Stage("layers.0", module, "layers.0."), caches, **more)


# While building ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "evidence"),
    [
        (
            layer(Borrowing(), SHARED),
            "'K_cache' \\[4\\] of layer 1, which is not an",
        ),
        (layer(Attention(), (Cache("K_cache", (2, 2)), GROWING[1])), "grows has one width"),
        (layer(Attention(), (Cache("input", (4,)), GROWING[1])), "'input' is the name of two"),
        (layer(Convolution(), (Cache("taps", (2, 8), grows=False),)), "parameter and an .* `taps`"),
        (layer(Attention(), GROWING, window=0), "window: 0 is not between"),
        (
            layer(Informed(), GROWING, inputs=(TokenInput("columns", "more", 10, 3),)),
            "columns 10 to 13 of the table `more`; `embed_extract` gives more of 12",
        ),
        (
            layer(Informed(), GROWING, inputs=(TokenInput("columns", "other", 0, 3),)),
            "of the table `other`",
        ),
        (
            layer(Convolution(), (Cache("past", (2, 8), grows=False, shared=0),)),
            "only caches that grow can be shared",
        ),
    ],
)
def test_a_layer_that_contradicts_itself(
    toy: ToyDecoder, wrong: DecoderLayer, evidence: str
) -> None:
    """Before anything is traced; the message names stage, cache or input."""
    decoder = replace(toy.decoder, layers=(wrong,))
    with pytest.raises(ContractError, match=evidence):
        check_decoder(decoder, TABLES)
    check_decoder(toy.decoder, TABLES)


def test_layers_of_one_kind_take_the_same(toy: ToyDecoder) -> None:
    """One trace serves both, so a cache of another width would go wrong."""
    first = toy.decoder.layers[0]
    assert isinstance(first, Stage)
    other = DecoderLayer(replace(first, name="other"), (Cache("K_cache", (4,)),))
    with pytest.raises(ContractError, match="are both of kind `plain` but take other caches"):
        check_decoder(replace(toy.decoder, layers=(first, other)), TABLES)


class Forgetful(Attention):
    """Returns no rows for its caches."""

    def forward(self, *given: torch.Tensor) -> Any:
        """Return the state alone."""
        return super().forward(*given)[2]


class Numbered(Attention):
    """Turns the number of tokens into a constant."""

    def forward(self, *given: torch.Tensor) -> Any:
        """Add to every token what its place in the chunk says."""
        key, value, state = super().forward(*given)
        return key, value, state + torch.arange(int(state.shape[1]))[:, None]


class Reshaped(Attention):
    """Reshapes to the number of tokens that it was tried with."""

    def forward(self, *given: torch.Tensor) -> Any:
        """Return the state by way of a matrix of three rows."""
        key, value, state = super().forward(*given)
        return key, value, state.reshape(3, 8)[None]


class Last(Attention):
    """Returns the state of one token, however many there are."""

    def forward(self, *given: torch.Tensor) -> Any:
        """Leave out the rest."""
        key, value, state = super().forward(*given)
        return key, value, state[:, -1:]


class Whole(Attention):
    """Returns the rows of the history, too."""

    def forward(self, *given: torch.Tensor) -> Any:
        """Join old and new."""
        key, value, state = super().forward(*given)
        return torch.cat([given[0], key], 1), value, state


class Wide(Attention):
    """Returns rows of twice the width."""

    def forward(self, *given: torch.Tensor) -> Any:
        """Repeat the keys."""
        key, value, state = super().forward(*given)
        return torch.cat([key, key], 2), value, state


@pytest.mark.parametrize(
    ("module", "evidence"),
    [
        (Forgetful(), r"returns 1 tensors, .*, not 3, .*: K_cache_out, V_cache_out, output"),
        (Numbered(), r"computes with one length of axis 1 of its input \d"),
        (Reshaped(), r"fails: .*\n.*input \[1, 4, 8\]"),
        (Last(), r"\(1, 1, 8\)\], not 3, .*\(1, 3, 8\)\]"),
        (Whole(), r"3 tensors, \[\(1, 8, 4\), \(1, 3, 4\)"),
        (Wide(), r"3 tensors, \[\(1, 3, 8\), \(1, 3, 4\)"),
    ],
)
def test_a_layer_that_others_would_compute_wrongly_with(
    tmp_path: Path, module: torch.nn.Module, evidence: str
) -> None:
    """It traces, but for one length, or returns other outputs; no graph is written."""
    with pytest.raises(ContractError, match=evidence):
        toy_decoder(tmp_path, [Stage("layers.0", module, "layers.0.")])
    assert not list((tmp_path / "bundle").glob("*.onnx"))


# When files are opened ---------------------------------------------------------------------------


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return changed


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        (lambda _: "{", "Expecting"),
        (lambda _: "[" * 70 + "]" * 70, "nested|not of type"),
        (described(lambda d: d.pop("caches")), "caches: missing"),
        (described(lambda d: d["caches"][0].update(grows="yes")), "grows: 'yes' is not of type"),
        (described(lambda d: d["caches"][0].update(shape=[1 << 30])), "not the shape of a state"),
        (described(lambda d: d["caches"][0].update(shape=[3, 8])), "not \\[1, 3, 8\\]"),
        (described(lambda d: d.update(caches=d["caches"] * 99)), "is the name of two"),
        (described(lambda d: d.update(window=-1)), "window: -1 is not between"),
        (
            described(
                lambda d: d.update(inputs=[{"name": "x", "table": "t", "start": 0, "width": 1}])
            ),
            "is not a layer model",
        ),
    ],
)
def test_a_file_that_describes_another_layer(
    toy: ToyDecoder, tmp_path: Path, change: Callable[[str], str], evidence: str
) -> None:
    """Damaged or hostile metadata: the file is named, and no traceback shows."""
    folder = shutil.copytree(toy.deployment.folder, tmp_path / "bundle")
    shutil.rmtree(folder / ".axcore")
    path = folder / f"toy_p{CHUNK}_l2_together.onnx"
    model = onnx.load(path, load_external_data=False)
    (entry,) = (prop for prop in model.metadata_props if prop.key == "axcore.layer")
    entry.value = change(entry.value)
    path.write_bytes(model.SerializeToString())
    moved = replace(toy.deployment, bundle=replace(toy.deployment.bundle, folder=folder))
    with pytest.raises(BundleError, match=evidence) as caught:
        LayerModels(moved, axengine_sim, ".onnx")
    assert path.name in caught.value.message


def test_a_bundle_without_the_table_of_its_layers(toy: ToyDecoder) -> None:
    """The layer and its columns are named."""
    with pytest.raises(BundleError, match=r"l4_together.onnx takes columns 2 to 5 of the table `m"):
        LayerModels(replace(toy.deployment, tables=()), axengine_sim, ".onnx")


def test_plain_layers_say_nothing_new(toy: ToyDecoder) -> None:
    """Their files are as before: five inputs, no description. Oracle: the published contract."""
    for number, expected in ((0, False), (1, True), (2, True)):
        path = toy.deployment.folder / f"toy_p{CHUNK}_l{number}_together.onnx"
        model = onnx.load(path, load_external_data=False)
        assert ("axcore.layer" in {prop.key for prop in model.metadata_props}) is expected
        if number < 2:  # a window is the host's business
            names = [value.name for value in model.graph.input]
            assert names == ["K_cache", "V_cache", "indices", "input", "mask"]


# Chunks ------------------------------------------------------------------------------------------


def test_a_block_longer_than_a_chunk(toy: ToyDecoder) -> None:
    """It is refused with its length, and with what would help; nothing is read."""
    model, count = LayerModels(toy.deployment, axengine_sim, ".onnx"), CHUNK + 3
    blocks = runs(np.array([0, 0, *[1] * (CHUNK + 1)]), count)
    positions = np.arange(count)[None].repeat(2, 0)
    with pytest.raises(BudgetError, match="7 tokens of the prompt see each other; a chunk has 6"):
        model.prefill(toy.rows([1] * count)[None], positions, blocks)
    assert model.filled == 0


def test_a_prompt_that_no_cut_lets_fit(toy: ToyDecoder) -> None:
    """Blocks so laid that the last chunk would begin behind the longest history.

    Oracle: the figures worked out by hand: 4 + 4 + 4, and 5 that no chunk of 6 holds with them.
    """
    limit, longest = HISTORIES[-1] + CHUNK, HISTORIES[-1]
    blocks = runs(np.array([1] * 4 + [2] * 4 + [3] * 5 + [4] * 5), limit)
    with pytest.raises(BudgetError, match="18 tokens; these layer models read 18, fewer where"):
        chunk_ends(0, blocks, CHUNK, longest)
    assert borders(blocks).nonzero()[0].tolist() == [0, 4, 8, 13, 18]
    assert chunk_ends(0, blocks * 0, CHUNK, longest) == [6, 12, 18]
    assert chunk_ends(5, blocks[5:] * 0, CHUNK, longest) == [6, 7, 13]
