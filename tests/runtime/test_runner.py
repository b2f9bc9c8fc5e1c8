"""From a prompt to a streamed answer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.compose
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image

import axcore
from axcore import (
    Answer,
    BudgetError,
    BundleError,
    ContractError,
    Prompt,
    Registry,
    Runner,
    Sampling,
    ToolchainError,
    UsageError,
)
from axcore.runtime import axengine_sim
from axcore.runtime import runner as runner_module
from axcore.runtime.deployment import Deployment
from axcore.runtime.language import LayerModels
from axcore.runtime.vision import VisionSide
from axcore.testing import answered

from ..built import HEAD, IMAGE, LAYER, LIMIT, ROWS, message
from ..bundles import STEM
from .conftest import CACHE, CHUNK, HISTORIES, VOCABULARY, WIDTH, Array, ToyLanguageModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from axcore import Sample

CONTEXT = CACHE + 1
IDS = st.integers(0, VOCABULARY - 1)
PROMPTS = st.lists(IDS, min_size=1, max_size=HISTORIES[-1] + CHUNK)


class Features:
    """A stand-in for the vision graphs: a sample's own rows; counts its runs."""

    def __init__(self) -> None:
        self.runs = self.opened = 0
        self.is_open = False

    def open(self) -> None:
        self.opened += not self.is_open
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def run(self, sample: Sample) -> Array:
        self.runs += 1
        return np.asarray(sample["x"], np.float32)

    def features(self, sample: Sample, first: str = "") -> dict[str, Array]:
        assert first in ("", "vision")
        return {"vision": self.run(sample)}


def toy_runner(deployment: Deployment, vision: Features | None = None) -> Runner:
    language = LayerModels(deployment, axengine_sim, ".onnx")
    return Runner(
        deployment, Registry([]), VisionSide(vision or Features(), deployment.graphs), language
    )


@pytest.fixture(scope="module")
def runner(toy_deployment: Deployment) -> Runner:
    return toy_runner(toy_deployment)


@pytest.fixture(scope="module")
def whole(finished: Path) -> Runner:
    """A bundle with vision side and family."""
    return axcore.load(finished)


def prompt(
    ids: Sequence[int], places: Sequence[int] = (), images: Sequence[Array] = (), **more: Any
) -> Prompt:
    return Prompt(
        np.array(ids, np.int64),
        np.arange(len(ids))[None],
        {"vision": np.array(places, np.int64)},
        {"vision": [{"x": image} for image in images]},
        **more,
    )


def answer_of(runner: Runner, asked: Prompt, *arguments: Any) -> Answer:
    answer = Answer()
    pieces = list(runner.answer(asked, *arguments, answer=answer))
    assert "".join(pieces) == answer.text
    assert all(pieces), "an empty piece"
    return answer


# Tokens ------------------------------------------------------------------------------------------


@given(
    asked=st.lists(st.tuples(PROMPTS, st.none() | st.integers(1, 20)), min_size=1, max_size=3),
    shared=st.booleans(),
)
def test_every_token_is_the_likeliest(
    runner: Runner,
    toy: ToyLanguageModel,
    asked: list[tuple[list[int], int | None]],
    shared: bool,
) -> None:
    """Prompts one after the other on one runner, some beginning like the one before.

    Oracle: the toy in numpy, all at once; ties within what rounding leaves are either's.
    """
    ids: list[int] = []
    for own, limit in asked:
        ids = ((ids if shared else []) + own)[: HISTORIES[-1] + CHUNK]
        answer = answer_of(runner, prompt(ids), None, limit)
        room = CONTEXT - len(ids)
        count = room if limit is None else min(limit, room)
        assert (len(answer.token_ids), answer.prompt_tokens) == (count, len(ids))
        assert answer.finish_reason == ("length" if count == limit else "context")
        assert answer.steps == max(count - 1, 0)
        for index, token in enumerate(answer.token_ids):
            logits = toy.logits(ids + answer.token_ids[:index])
            assert logits[token] >= logits.max() - 0.02 * np.abs(logits).max()


def test_an_answer_is_that_of_its_settings(runner: Runner, toy: ToyLanguageModel) -> None:
    """Penalty over prompt and answer. Oracle: with an endless one, nothing comes twice."""
    ids = [3, 4, 5]
    answer = answer_of(runner, prompt(ids), Sampling(repetition_penalty=1e9), None)
    assert len({*ids, *answer.token_ids}) == CONTEXT
    seeds = [answer_of(runner, prompt(ids), Sampling(500.0, seed=n)).token_ids for n in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("where", ["prompt", "checkpoint"])
def test_a_stop_token_ends_the_answer_and_is_left_out(
    toy_deployment: Deployment, where: str
) -> None:
    """Configured by the checkpoint, or named by the prompt. Oracle: the answer without an end."""
    ids = [1, 2, 3]
    endless = answer_of(toy_runner(toy_deployment), prompt(ids)).token_ids
    stop = endless[4]
    first = endless.index(stop)
    if where == "prompt":
        asked, runner = prompt(ids, stop_ids=(stop,)), toy_runner(toy_deployment)
    else:
        asked = prompt(ids)
        runner = toy_runner(replace(toy_deployment, stop_ids=frozenset({stop, 99})))
    answer = answer_of(runner, asked)
    assert (answer.token_ids, answer.finish_reason) == (endless[:first], "stop")


def test_what_was_read_is_kept(runner: Runner) -> None:
    """The answer counts as read, the last token of a prompt is always read again.

    Oracle: lengths by hand; chunks of 4 after a history of at most 8.
    """
    runner.forget()
    first = answer_of(runner, prompt([7, 8, 9]), None, 3)
    assert first.reused_tokens == 0
    longer = [7, 8, 9, *first.token_ids[:2], 1]
    assert answer_of(runner, prompt(longer), None, 1).reused_tokens == 5
    assert answer_of(runner, prompt(longer), None, 1).reused_tokens == 5  # and 1 anew
    assert answer_of(runner, prompt([7, 8, 1]), None, 1).reused_tokens == 2
    assert answer_of(runner, prompt([6, 8, 1]), None, 1).reused_tokens == 0
    runner.forget()
    assert answer_of(runner, prompt([6, 8, 1]), None, 1).reused_tokens == 0


def test_an_answer_may_be_broken_off(runner: Runner) -> None:
    """At any token: it holds what was said, and the next answer is as ever.

    Oracle: the same question left alone.
    """
    asked = prompt([5, 6, 7, 8, 9])
    whole = answer_of(runner, asked)
    for count in range(1, 4):
        answer = Answer()
        pieces = runner.answer(asked, answer=answer)
        for _ in pieces:
            if len(answer.token_ids) >= count:
                break
        pieces.close()  # type: ignore[attr-defined]
        assert answer.finish_reason == "interrupted"
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        assert whole.text.startswith(answer.text)
        assert answer_of(runner, asked).token_ids == whole.token_ids


@pytest.mark.parametrize("count", [0, -1])
def test_no_token_at_all_is_refused(runner: Runner, count: int) -> None:
    """Before anything is read. Oracle: the number in the message; the caches, which stay empty."""
    runner.forget()
    runner.language.resume(0, 1)
    with pytest.raises(UsageError, match=f"--max-new-tokens {count} is out of range") as caught:
        answer_of(runner, prompt([1, 2, 3]), None, count)
    assert "1 or more" in caught.value.hint
    assert runner.language.filled == 0


# Images ----------------------------------------------------------------------------------------


def test_rows_of_images_take_their_places(
    toy_deployment: Deployment, toy: ToyLanguageModel
) -> None:
    """In order; rows behind a run's last place are padding. Oracle: the embedding and the rows."""
    runner = toy_runner(toy_deployment)
    images = [np.full((3, WIDTH), n, np.float32) for n in (1, 2)]
    asked = prompt([9, 9, 9, 9, 9, 9], images=images)
    runs = [np.array([1, 2, 3]), np.array([5])]
    expected = toy.embedding[[9] * 6]
    expected[[1, 2, 3]], expected[5] = 1, 2
    rows = runner.rows(replace(asked, vision_rows={"vision": runs}))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(runner.rows(prompt([9, 8])), toy.embedding[[9, 8]])


def test_an_image_is_seen_once(toy_deployment: Deployment) -> None:
    """Again in the next prompt or in the same, its rows are known, until they are forgotten."""
    features = Features()
    runner = toy_runner(toy_deployment, features)
    one, other = (np.full((1, WIDTH), n, np.float32) for n in (1, 2))
    for images in ([one], [one, one], [one, other]):
        runner.rows(prompt([9, 9, 9], [1, 2][: len(images)], images))
    assert features.runs == 2
    runner.forget()
    runner.rows(prompt([9, 9, 9], [1], [one]))
    assert features.runs == 3


def test_opening_the_vision_side_is_not_time_to_the_first_token(
    toy_deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an image comes, and only then, it is opened. Oracle: a clock that tasks move on."""
    clock = 0.0

    class Slow(Features):
        def open(self) -> None:
            nonlocal clock
            clock += 100

        def run(self, sample: Sample) -> Array:
            nonlocal clock
            clock += 7
            return super().run(sample)

    monkeypatch.setattr(runner_module.time, "perf_counter", lambda: clock)
    runner = toy_runner(toy_deployment, Slow())
    answer = answer_of(runner, prompt([9, 9], [1], [np.ones((1, WIDTH), np.float32)]), None, 1)
    assert (answer.load_s, answer.vision_s, answer.first_token_s) == (100, 7, 7)
    assert answer_of(runner, prompt([9, 9]), None, 1).load_s == 0


def test_the_vision_side_is_open_for_new_images_alone(toy_deployment: Deployment) -> None:
    """Once for all images of a prompt, closed behind them unless it is kept."""
    one, other = (np.full((1, WIDTH), n, np.float32) for n in (1, 2))
    prompts = [
        prompt([9, 9, 9], [1, 2], [one, other]),
        prompt([9, 9, 9], [1], [other]),
        prompt([9, 9]),
        prompt([9, 9], [1], [np.full((1, WIDTH), 3, np.float32)]),
    ]
    seen = {}
    for keep in (False, True):
        seen[keep] = features = Features()
        side = VisionSide(features, toy_deployment.graphs, keep=keep)
        for asked in prompts:
            side.rows(asked)
            assert features.is_open is keep
    assert (seen[False].opened, seen[True].opened) == (2, 1)


def test_images_may_be_run_ahead_of_the_language_model(whole: Runner, own: Path) -> None:
    """The answer is the same, and knows their seconds. Oracle: a runner that opens all at once.

    Layer models that are missing or damaged show before an image is run.
    """
    asked = whole.prepare([message("What?", IMAGE)])
    opened = Runner.open(own, Registry(), ahead=asked)
    answer = answer_of(opened, asked, None, 4)
    assert answer.token_ids == answer_of(whole, asked, None, 4).token_ids
    assert min(answer.vision_s, answer.load_s) > 0
    assert not opened._vision._model._parts  # type: ignore[attr-defined]
    layer = next(iter(own.glob("*_l0_together.onnx")))
    layer.write_bytes(layer.read_bytes()[:-1])
    vision = next(iter(own.glob("*vision*.onnx")))
    vision.write_bytes(b"")
    with pytest.raises(BundleError, match=layer.name):
        Runner.open(own, Registry(), ahead=asked)


def test_too_few_rows_are_the_familys_fault(toy_deployment: Deployment) -> None:
    """Both numbers are named."""
    asked = prompt([9, 9, 9], [0, 1], [np.zeros((1, WIDTH), np.float32)])
    with pytest.raises(ContractError, match="places for 2 rows of `vision`; its 1 samples give 1"):
        answer_of(toy_runner(toy_deployment), asked)


# A whole bundle ----------------------------------------------------------------------------------


def test_the_longest_prompt_passes_and_one_more_token_does_not(whole: Runner) -> None:
    """Oracle: the lengths of the conversion. A letter is a token of the fabricated tokenizer."""
    frame = len(whole.prepare([message("", IMAGE)]).input_ids)
    fits = whole.prepare([message("x" * (LIMIT - frame), IMAGE)])
    assert len(fits.input_ids) == LIMIT
    assert answer_of(whole, fits, None, 1).prompt_tokens == LIMIT
    expected = rf"has {LIMIT + 1} tokens \({ROWS} for images\); this build allows {LIMIT}"
    with pytest.raises(BudgetError, match=expected):
        whole.prepare([message("x" * (LIMIT - frame + 1), IMAGE)])


def test_blocks_that_no_chunks_hold_are_refused_before_loading(whole: Runner) -> None:
    """A prompt that would fit but for its blocks; the family that says so is a stand-in.

    Oracle: two blocks of just over half a chunk need a chunk each, so half of the limit holds no
    more of them.
    """
    chunk = whole.deployment.llm.prefill_len
    count = LIMIT // chunk * chunk
    blocks = np.arange(count) // (chunk // 2 + 1) + 1

    class Blocks(Registry):
        def call(self, family: str, hook: str, **arguments: Any) -> Any:
            return prompt(range(count), blocks=blocks[:count])

    with pytest.raises(BudgetError, match=f"{count} tokens; .*fewer where tokens that see each"):
        runner_module.prepare_prompt(whole.deployment, Blocks(), [message("?")])


def test_a_prompt_needs_no_layer_model(own: Path, whole: Runner) -> None:
    """It is made, or refused for its length, from the manifest. Oracle: the loaded runner's."""
    for path in own.glob("*.onnx*"):
        path.unlink()
    registry = Registry()
    deployment = Deployment.open(own, registry)
    asked = [message("What?", IMAGE)]
    made = runner_module.prepare_prompt(deployment, registry, asked)
    np.testing.assert_array_equal(made.input_ids, whole.prepare(asked).input_ids)
    with pytest.raises(BudgetError, match=f"this build allows {LIMIT}"):
        runner_module.prepare_prompt(deployment, registry, [message("x" * LIMIT)])


def test_an_image_matters(whole: Runner) -> None:
    """Answers differ by what is seen. Oracle: none needed; equal rows would be equal answers."""
    red, blue = (Image.new("RGB", (84, 56), colour) for colour in ("red", "blue"))
    rows = [whole.rows(whole.prepare([message("?", image)])) for image in (red, blue)]
    assert (rows[0] != rows[1]).any(1).sum() == ROWS


@pytest.mark.parametrize("takes", ["float32", "uint8"])
def test_a_board_answers_alike(
    own: Path, whole: Runner, monkeypatch: pytest.MonkeyPatch, takes: str
) -> None:
    """Through the module that a board has, with images as numbers or as bytes.

    The simulation stands in for the board's module, ONNX models for compiled ones; the vision
    model in bytes normalises them itself, as compiled ones do. Oracle: the answer of this machine.
    """
    for name in (LAYER.format(0), LAYER.format(1), HEAD, f"{STEM}.onnx"):
        (own / name).rename((own / name).with_suffix(".axmodel"))
    if takes == "uint8":
        take_bytes(own / f"{STEM}.axmodel", whole)
    monkeypatch.setitem(sys.modules, "axengine", axengine_sim)
    board = axcore.load(own, backend="axengine")
    asked, sampling = [message("What?", IMAGE)], Sampling(3.0, seed=1)
    rows = [runner.rows(runner.prepare(asked)) for runner in (board, whole)]
    np.testing.assert_allclose(*rows, rtol=0, atol=1e-5)
    expected = answered(whole, asked, sampling, 12)
    assert answered(board, asked, sampling, 12).token_ids == expected.token_ids


def take_bytes(path: Path, runner: Runner) -> None:
    """Put what a compiled model begins with before a graph: bytes in, mean and deviation off."""
    (described,) = runner.deployment.graphs
    model = onnx.load(path)
    (port,) = model.graph.input
    batch, channels, height, width = (dim.dim_value for dim in port.type.tensor_type.shape.dim)
    opset = max(entry.version for entry in model.opset_import)
    version = f'<ir_version: {model.ir_version}, opset_import: ["": {opset}]>'
    front = onnx.parser.parse_model(f"""{version}
    front (uint8[{batch},{height},{width},{channels}] bytes)
    => (float[{batch},{channels},{height},{width}] image) {{
      numbers = Cast <to = 1> (bytes)  centred = Sub (numbers, mean)  scaled = Div (centred, std)
      image = Transpose <perm = [0, 3, 1, 2]> (scaled)
    }}""")
    for name in ("mean", "std"):
        values = np.array(getattr(described.calibration, name), np.float32)
        front.graph.initializer.append(numpy_helper.from_array(values, name))
    merged = onnx.compose.merge_models(front, model, [("image", port.name)])
    merged.graph.node[0].input[0] = merged.graph.input[0].name = port.name
    onnx.save(merged, path)


def test_backends_are_named_and_say_what_they_lack(finished: Path) -> None:
    """Unknown, not available, without such an option."""
    with pytest.raises(UsageError, match="no backend `abacus`") as caught:
        axcore.load(finished, backend="abacus")
    assert "onnx, axengine" in caught.value.hint
    with pytest.raises(ToolchainError, match="`axengine` is not available") as missing:
        axcore.load(finished, backend="axengine")
    assert "install pyaxengine" in missing.value.hint
    with pytest.raises(UsageError, match="backend `onnx` has no option --device"):
        axcore.load(finished, options={"device": "npu"})


def test_importing_axcore_leaves_the_runtime_for_later() -> None:
    """Runner, Answer and Sampling are imported when asked for; other names are not there."""
    code = (
        "import sys, axcore\n"
        "assert 'numpy' not in sys.modules\n"
        "assert axcore.Runner.__module__ == 'axcore.runtime.runner'\n"
        "assert axcore.Sampling().temperature == 0\n"
        "assert 'onnxruntime' not in sys.modules and 'torch' not in sys.modules\n"
        "assert not hasattr(axcore, 'Nothing')\n"
        "assert all(hasattr(axcore, name) for name in axcore.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
