"""Chunked prefill and decoding over caches give what reading all at once gives."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore import BundleError, Embedding, UnsupportedModel
from axcore.runtime import axengine_sim
from axcore.runtime.language import Embeddings, LayerModels

from .conftest import (
    CACHE,
    CHUNK,
    HISTORIES,
    VOCABULARY,
    WIDTH,
    Array,
    ToyLanguageModel,
    shape_group,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from axcore.runtime.deployment import Deployment

LIMIT, CONTEXT = HISTORIES[-1] + CHUNK, CACHE + 1
IDS = st.integers(0, VOCABULARY - 1)
PROMPTS = st.lists(IDS, min_size=1, max_size=LIMIT)
# Of the largest logit: states are rounded to 8 bits, in another order of sums; 0.023 was seen.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def model(toy_deployment: Deployment) -> LayerModels:
    return LayerModels(toy_deployment, axengine_sim, ".onnx")


@pytest.fixture(scope="module")
def fed(toy_deployment: Deployment) -> LayerModels:
    class Fed(axengine_sim.InferenceSession):
        bind = None  # type: ignore[assignment]

    class Engine:
        InferenceSession = Fed

    return LayerModels(toy_deployment, Engine(), ".onnx")


def prefill(model: LayerModels, toy: ToyLanguageModel, ids: Sequence[int], start: int = 0) -> Array:
    """Read ``ids[start:]`` behind what is filled; the logits of what follows."""
    rows = toy.embedding[list(ids[start:])][None]
    logits = model.prefill(rows, np.arange(start, len(ids))[None])
    assert (logits.shape, logits.dtype) == ((1, VOCABULARY), np.float32)
    return logits[0]


def decode(model: LayerModels, toy: ToyLanguageModel, token: int, position: int) -> Array:
    return model.decode(toy.embedding[[token]], position)[0]


def assert_near(found: Array, expected: Array) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_limits_are_those_of_the_files(model: LayerModels) -> None:
    """Oracle: the shape groups of the toy: 15 slots, batch 1."""
    assert (model.context, model.max_batch) == (16, 1)


@given(ids=PROMPTS, cut=st.integers(0, LIMIT))
def test_bound_steps_are_those_that_are_fed_anew(
    model: LayerModels, fed: LayerModels, toy: ToyLanguageModel, ids: list[int], cut: int
) -> None:
    """Bit by bit, through every group, and again behind what is kept.

    Oracle: sessions that bind nothing, as a board's.
    """
    for kept in (0, min(cut, len(ids) - 1)):
        both = []
        for one in (model, fed):
            begin = one.resume(kept, len(ids))
            made = [prefill(one, toy, ids, begin)]
            made += [decode(one, toy, n % VOCABULARY, n) for n in range(len(ids), CONTEXT)]
            both.append(made)
        np.testing.assert_array_equal(*both)
    assert model._bound is not None
    assert fed._bound is None


@given(ids=PROMPTS)
def test_a_prompt_of_any_length(model: LayerModels, toy: ToyLanguageModel, ids: list[int]) -> None:
    """Shorter than a chunk, a multiple of it, and all between, up to the limit.

    Oracle: the toy in numpy, all at once and without a cache.
    """
    model.resume(0, len(ids))
    assert_near(prefill(model, toy, ids), toy.logits(ids))
    assert model.filled == len(ids)


@given(ids=st.lists(IDS, min_size=CONTEXT, max_size=CONTEXT), prompt=st.integers(1, LIMIT))
def test_an_answer_until_the_context_is_full(
    model: LayerModels, toy: ToyLanguageModel, ids: list[int], prompt: int
) -> None:
    """Every token sees all before it and nothing else. Oracle: the toy all at once."""
    model.resume(0, prompt)
    prefill(model, toy, ids[:prompt])
    for position in range(prompt, CONTEXT):
        logits = decode(model, toy, ids[position], position)
        assert_near(logits, toy.logits(ids[: position + 1]))
    assert model.filled == CONTEXT


@given(
    first=PROMPTS,
    answer=st.lists(IDS, max_size=CONTEXT - LIMIT),
    rest=PROMPTS,
    data=st.data(),
)
def test_a_next_prompt_keeps_the_beginning_it_shares(
    model: LayerModels,
    toy: ToyLanguageModel,
    first: list[int],
    answer: list[int],
    rest: list[int],
    data: st.DataObject,
) -> None:
    """Read from where they part, behind tokens of a prompt and of an answer alike.

    Oracle: the toy all at once. As many stay as the groups allow: all, unless a chunk of the rest
    would find no group for its history; then at least whole chunks of them.
    """
    model.resume(0, len(first))
    prefill(model, toy, first)
    for position, token in enumerate(answer, len(first)):
        decode(model, toy, token, position)
    read = first + answer
    known = data.draw(st.integers(0, min(len(read), LIMIT - 1)))
    prompt = (read[:known] + rest)[:LIMIT]
    kept = model.resume(min(known, len(prompt) - 1), len(prompt))
    assert 0 <= kept <= known
    assert kept >= min(known, len(prompt) - 1) // CHUNK * CHUNK
    assert_near(prefill(model, toy, prompt, kept), toy.logits(prompt))


def test_compiled_models_are_fed_alike(
    toy_deployment: Deployment, toy: ToyLanguageModel, model: LayerModels, tmp_path: Path
) -> None:
    """Files of a board behind the board's surface, with the groups in another order.

    A simulation stands in for the board. Oracle: the ONNX models' own logits, bit by bit.
    """
    board = regrouped(toy_deployment, tmp_path, lambda old: [old[0], *old[:0:-1]], ".axmodel")
    ids = list(range(11))
    model.resume(0, len(ids))
    np.testing.assert_array_equal(prefill(board, toy, ids), prefill(model, toy, ids))
    for position in range(11, CONTEXT):
        found, expected = (decode(m, toy, 3, position) for m in (board, model))
        np.testing.assert_array_equal(found, expected)


def regrouped(
    deployment: Deployment,
    folder: Path,
    change: Callable[[list[Any]], list[Any]],
    suffix: str = ".onnx",
) -> LayerModels:
    """Copy the toy's models with other shape groups to `folder`, and open them there."""
    for path in deployment.folder.glob("*.onnx"):
        loaded = onnx.load(path)
        for prop in loaded.metadata_props:
            prop.value = json.dumps(change(json.loads(prop.value)))
        onnx.save(loaded, folder / path.with_suffix(suffix).name)
    moved = replace(deployment, bundle=replace(deployment.bundle, folder=folder))
    return LayerModels(moved, axengine_sim, suffix)


def with_groups(
    toy_deployment: Deployment, tmp_path: Path, *more: dict[str, Any]
) -> tuple[LayerModels, list[int]]:
    """Return the toy with further groups behind its own, and the list of those that are run."""
    model = regrouped(toy_deployment, tmp_path, lambda groups: [*groups, *more])
    session: Any = model._layers[0].session
    run, bind, groups = session.run, session.bind, list[int]()

    def noted(*arguments: Any, shape_group: int = 0) -> Any:
        groups.append(shape_group)
        return run(*arguments, shape_group=shape_group)

    def bound(shape_group: int, arrays: Any) -> Any:
        again = bind(shape_group, arrays)

        def noted_again() -> None:
            groups.append(shape_group)
            again()

        return noted_again

    session.run, session.bind = noted, bound
    return model, groups


def test_a_decoding_group_is_taken_while_it_suffices(
    toy_deployment: Deployment, toy: ToyLanguageModel, tmp_path: Path
) -> None:
    """With a second group of a shorter cache, tokens are decoded there first.

    Oracle: the toy all at once; the groups that were run.
    """
    model, groups = with_groups(toy_deployment, tmp_path, shape_group(6, 1))
    ids = list(range(4, 4 + CONTEXT))
    prefill(model, toy, ids[:CHUNK])
    for position in range(CHUNK, CONTEXT):
        logits = decode(model, toy, ids[position], position)
        assert_near(logits, toy.logits(ids[: position + 1]))
    assert groups == [1, 4, 4, 4, *([0] * (CONTEXT - CHUNK - 3))]


def test_the_shortest_chunk_is_taken_that_holds_what_is_left(
    toy_deployment: Deployment, toy: ToyLanguageModel, tmp_path: Path
) -> None:
    """With groups for half a chunk, the end of a prompt is padded to no more than that.

    Oracle: the toy all at once; the groups that were run.
    """
    half = CHUNK // 2
    model, groups = with_groups(
        toy_deployment, tmp_path, shape_group(0, half, placeholder=True), shape_group(CHUNK, half)
    )
    for count, expected in ((1, [4]), (half, [4]), (half + 1, [1]), (CHUNK + 1, [1, 5])):
        model.resume(0, count)
        groups.clear()
        assert_near(prefill(model, toy, list(range(4, 4 + count))), toy.logits(range(4, 4 + count)))
        assert groups == expected


@pytest.mark.parametrize(
    ("shape", "evidence"),
    [
        ((VOCABULARY, 16), "takes states of 8; the embedding is 16 wide"),
        ((VOCABULARY + 1, WIDTH), r"returns 32 values\n.*vocabulary has 33 tokens"),
    ],
)
def test_another_embedding_than_that_of_the_layers(
    toy_deployment: Deployment, shape: tuple[int, int], evidence: str
) -> None:
    """Both sizes are named. What else may be wrong is tested with the command."""
    other = replace(toy_deployment, embedding=Embedding("embed", shape))
    with pytest.raises(BundleError, match=evidence):
        LayerModels(other, axengine_sim, ".onnx")


@given(ids=st.lists(IDS, max_size=20), scale=st.sampled_from([1.0, 12.0, 0.3]))
def test_rows_of_the_embedding(
    toy_deployment: Deployment, toy: ToyLanguageModel, ids: list[int], scale: float
) -> None:
    """Looked up and multiplied in float32. Oracle: the table itself."""
    scaled = replace(toy_deployment, embedding=replace(toy_deployment.embedding, scale=scale))
    rows = Embeddings(scaled).rows(np.array(ids, np.int64))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, toy.embedding[ids] * np.float32(scale))


def test_the_embedding_stays_on_disk(toy_deployment: Deployment) -> None:
    """Looking rows up maps the file and reads no more of it than they take."""
    ((_, table),) = Embeddings(toy_deployment)._tables
    assert isinstance(table._values, np.memmap)
    assert table._values.dtype == ml_dtypes.bfloat16


def test_a_token_without_a_row(toy_deployment: Deployment) -> None:
    """Token and number of rows are named."""
    with pytest.raises(BundleError, match="token 32 is beyond the embedding's 32 rows"):
        Embeddings(toy_deployment).rows(np.array([3, 32]))


@pytest.mark.parametrize("window", [CACHE, CACHE + 1])
def test_compiled_layers_that_may_have_a_window(toy_deployment: Deployment, window: int) -> None:
    """Files that say nothing of themselves run where the window holds all tokens, and only there.

    The job is a stand-in with a config alone. Oracle: a cache and the token behind it.
    """
    types = ["sliding_attention", "full_attention"]
    config = {"num_hidden_layers": 2, "layer_types": types, "sliding_window": window}
    job: Any = SimpleNamespace(text_config=config)
    deployment = replace(toy_deployment, job=job)
    if window > CACHE:
        LayerModels(deployment, axengine_sim, ".onnx")
        return
    with pytest.raises(UnsupportedModel, match="1 of 2 layers of the type sliding_att") as caught:
        LayerModels(deployment, axengine_sim, ".onnx")
    assert "--toolchain onnx" in caught.value.hint
