"""Throughput: what is measured, how it is written, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axcore import BudgetError, BundleError, Registry, ToolchainError, UsageError, read_image
from axcore.evaluate import Measurement, Question, measure_throughput, plot_throughput
from axcore.evaluate.memory import PeakMemory, explained_memory
from axcore.evaluate.plots import _lines, _ticks
from axcore.evaluate.throughput import _greedy, _read, write_table
from axcore.runtime.runner import Answer, Runner

from ..bundles import Interrupted
from .answering import IMAGES, PROMPT_MAX, ROWS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CAT = IMAGES / "cat.jpg"
PETABYTE = 1 << 50
# As the document that axcore follows has them.
COLUMNS = [
    "batch", "input_len", "output_len", "embedding_len", "first_token_time(ms)",
    "non_first_token_time(ms)", "ResponseTime(ms)", "E2E Throughput Average(Tokens/s)",
]  # fmt: skip


def measurement(**changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "batch": 4, "input_len": 60, "output_len": 3, "embedding_len": 12, "first_token_ms": 500.0,
        "step_ms": (20.0, 40.0), "response_ms": 600.0, "peak_bytes": 5_000_000,
        "device_peak_bytes": None,
    }  # fmt: skip
    return Measurement(**{**fields, **changes})


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Measuring ---------------------------------------------------------------------------------------


def test_a_sweep(batched_model: Path, tmp_path: Path) -> None:
    """Every length with every batch; table and JSON say the same. Oracle: the request."""
    out = tmp_path / "deep" / "t.csv"
    done = measure_throughput(
        batched_model, out, image=CAT, prompt="What?", batch_sizes=[1, 3], input_lens=[70, 80],
        output_len=5,
    )  # fmt: skip
    asked = [(n, b) for n in (70, 80) for b in (1, 3)]
    assert [(one.input_len, one.batch) for one in done] == asked
    for one in done:
        assert (one.embedding_len, one.output_len, len(one.step_ms)) == (ROWS, 5, 4)
        assert one.first_token_ms + sum(one.step_ms) <= one.response_ms
        assert one.peak_bytes is None or one.peak_bytes > 10_000_000
    rows = table_of(out)
    assert [(int(row["input_len"]), int(row["batch"])) for row in rows] == asked
    data = json.loads(out.with_suffix(".json").read_text())
    assert data["prompt"] == "What?"
    assert [one["step_ms"] for one in data["measurements"]] == [list(one.step_ms) for one in done]


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_a_batch_is_really_run(batched_model: Path, backend: str) -> None:
    """Three prompts at once give, each, the tokens of one alone, whatever ends an answer.

    Oracle: the loop of `axcore run`, whose stop tokens are taken away.
    """
    runner = Runner.open(batched_model, Registry(), backend)
    question, image = Question("Say"), read_image(CAT)
    prompt, rows = _read(runner, question, image, 3)
    tokens = np.stack(list(_greedy(runner, prompt, rows, 9)), 1)
    assert rows.shape[:2] == (3, len(prompt.input_ids))
    alone = Runner.open(batched_model, Registry(), backend)
    object.__setattr__(alone.deployment, "stop_ids", frozenset())
    prompt = alone.prepare(question.messages(image))
    object.__setattr__(prompt, "stop_ids", ())
    answer = Answer()
    assert "".join(alone.answer(prompt, None, 9, answer)) == answer.text
    assert tokens.tolist() == [answer.token_ids] * 3


def test_images_are_run_anew_for_every_prompt(batched_model: Path, tmp_path: Path) -> None:
    """An image remembered from the warm-up would leave its time out.

    Oracle: the count of runs: 1 + 2 prompts of the warm-ups, as many measured.
    """
    runs = 0
    opened = Runner.open

    def counting(*arguments: Any, **named: Any) -> Runner:
        runner = opened(*arguments, **named)
        model = runner._vision._model
        features = model.features

        def counted(*given: Any) -> Any:
            nonlocal runs
            runs += 1
            return features(*given)

        model.features = counted  # type: ignore[method-assign]
        return runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "open", counting)
        how: dict[str, Any] = {"image": CAT, "prompt": "a", "output_len": 2}
        measure_throughput(batched_model, tmp_path / "t.csv", batch_sizes=[1, 2], **how)
    assert runs == 2 * (1 + 2)


def test_text_alone(model: Path, tmp_path: Path) -> None:
    """Without an image nothing stands for one; prompt and answer may fill the 128 positions.

    Oracle: the length, padded as asked.
    """
    (one,) = measure_throughput(
        model, tmp_path / "t.csv", prompt="Hm", batch_sizes=[1], input_lens=[PROMPT_MAX],
        output_len=33,
    )  # fmt: skip
    assert (one.input_len, one.embedding_len) == (PROMPT_MAX, 0)


def test_an_interrupted_sweep_keeps_what_it_has(batched_model: Path, tmp_path: Path) -> None:
    """Table and plot show what was measured. Oracle: the files after the first of three."""
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "t.csv", tmp_path / "t.svg"
    with pytest.raises(KeyboardInterrupt):
        measure_throughput(
            batched_model, out, prompt="a", batch_sizes=[1, 2, 3], output_len=2, plot=plot,
            progress=Interrupted(label="measure"),
        )  # fmt: skip
    assert [row["batch"] for row in table_of(out)] == ["1"]
    assert f"<!-- {batched_model.name}, onnx, answers of 2 tokens -->" in plot.read_text()


def test_a_batch_beyond_memory(batched_model: Path, tmp_path: Path) -> None:
    """The error names the batch and the table with what came before it.

    Oracle: numpy's own error, for a petabyte that the second batch wants.
    """
    pytest.importorskip("matplotlib")
    opened, out, plot = Runner.open, tmp_path / "t.csv", tmp_path / "t.svg"

    def short(*arguments: Any, **named: Any) -> Runner:
        runner = opened(*arguments, **named)
        prefill = runner.language.prefill

        def taking(rows: Any, positions: Any) -> Any:
            return np.empty(PETABYTE, np.uint8) if len(rows) == 6 else prefill(rows, positions)

        runner.language.prefill = taking  # type: ignore[method-assign]
        return runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "open", short)
        how: dict[str, Any] = {"prompt": "a", "output_len": 2, "plot": plot}
        with pytest.raises(BudgetError, match=r"a batch of 6 .*t\.csv keeps the 2 ") as raised:
            measure_throughput(batched_model, out, batch_sizes=[1, 2, 6], **how)
        assert "Unable to allocate 1.00 PiB" in raised.value.message
        assert "below 6" in raised.value.hint
        with pytest.raises(BudgetError, match="nothing was measured before it"):
            measure_throughput(batched_model, out, batch_sizes=[6], **how)
    assert [row["batch"] for row in table_of(out)] == ["1", "2"]
    assert plot.exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_sizes": [1, 2]}, UsageError, "a batch of 2 .* runs 1 with these"),
        ({"input_lens": [20]}, UsageError, "tokens before any padding, 20 are asked for"),
        ({"output_len": 127}, BudgetError, "positions; this build has 128"),
        ({"input_lens": [PROMPT_MAX], "output_len": 34}, BudgetError, "need 129 positions"),
        ({"output_len": 1}, UsageError, "cannot be measured"),
        ({"batch_sizes": []}, UsageError, "cannot be measured"),
        ({"batch_sizes": [0]}, UsageError, "cannot be measured"),
    ],
)
def test_refused_before_work(
    model: Path, tmp_path: Path, changes: dict[str, Any], error: Any, message: str
) -> None:
    """Static shapes run no batch, and lengths have limits; nothing is written. Oracle: messages."""
    given: dict[str, Any] = {"batch_sizes": [1], "output_len": 2, **changes}
    with pytest.raises(error, match=message):
        measure_throughput(model, tmp_path / "t.csv", image=CAT, prompt="a", **given)
    assert not list(tmp_path.iterdir())


# Where it is written -----------------------------------------------------------------------------


def refused(folder: Path, out: Path, error: Any, message: str, **given: Any) -> None:
    """Hold that outputs are looked at first: the bundle that is named does not exist."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(error, match=message):
        measure_throughput(folder / "no bundle", out, batch_sizes=[1], **given)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["t.json", "t.png", "t", ".", ".csv"])
def test_the_table_is_csv(tmp_path: Path, name: str) -> None:
    """So that JSON and plot have other names. Oracle: the message."""
    refused(tmp_path, tmp_path / name, UsageError, "the table cannot be written as")


@pytest.mark.parametrize(
    "content", ['{"cat.jpg": "a cat"}', '{"measurements": "a cat"}', "[1]", "{", ""]
)
def test_answers_are_not_replaced(tmp_path: Path, content: str) -> None:
    """Figures go beside the table, where something else may lie. Oracle: the file as it was."""
    (tmp_path / "board.json").write_text(content)
    refused(tmp_path, tmp_path / "board.csv", UsageError, "board.json, .* holds something else")


def test_an_earlier_run_is_replaced(model: Path, tmp_path: Path) -> None:
    """Table, figures and plot of the same name. Oracle: the prompts in the file."""
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "t.csv", tmp_path / "t.png"
    for prompt in ("a", "b"):
        how: dict[str, Any] = {"prompt": prompt, "output_len": 2, "plot": plot}
        measure_throughput(model, out, batch_sizes=[1], **how)
        assert json.loads(out.with_suffix(".json").read_text())["prompt"] == prompt


def test_an_image_is_not_replaced(tmp_path: Path) -> None:
    """By a plot, even if what is asked about is one itself. Oracle: the files as they were."""
    pytest.importorskip("matplotlib")
    photo, chart = tmp_path / "photo.png", tmp_path / "chart.png"
    shutil.copy(CAT, photo)
    plot_throughput([measurement()], chart, "a chart")
    out = tmp_path / "t.csv"
    refused(tmp_path, out, UsageError, "photo.png exists and is not a plot", plot=photo)
    refused(tmp_path, out, UsageError, "would take the place of the image", plot=chart, image=chart)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".png"])
def test_a_place_that_takes_no_file(tmp_path: Path, suffix: str) -> None:
    """A folder of that name, and a file instead of the folder. Oracle: the messages."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "t.csv"
    out.with_suffix(suffix).mkdir()
    plot = out.with_suffix(".png")
    refused(tmp_path, out, BundleError, rf"cannot write .*t\{suffix}", plot=plot)
    (tmp_path / "file").touch()
    refused(tmp_path, tmp_path / "file" / "t.csv", BundleError, "file is no folder")


# Tables and plots --------------------------------------------------------------------------------


def test_columns(tmp_path: Path) -> None:
    """Names and arithmetic. Oracle: the document's, and sums by hand."""
    write_table(tmp_path / "t.csv", [measurement()])
    (row,) = table_of(tmp_path / "t.csv")
    assert list(row) == [*COLUMNS, "peak_memory(MB)"]
    assert list(row.values()) == ["4", "60", "3", "12", "500.00", "30.00", "600.00", "20.00", "5.0"]
    write_table(tmp_path / "t.csv", [measurement()], mindie_columns=True)
    (other,) = table_of(tmp_path / "t.csv")
    old = [name.replace("first_token", "fisrt_token", 1) if name.startswith("first") else name
           for name in COLUMNS]  # fmt: skip
    assert list(other) == old
    assert list(other.values()) == list(row.values())[:8]


def test_memory_of_an_accelerator_comes_first(tmp_path: Path) -> None:
    """Where there is one; where nothing is known the cell is empty. Oracle: the fields."""
    measured = [measurement(device_peak_bytes=7_000_000), measurement(peak_bytes=None)]
    write_table(tmp_path / "t.csv", measured)
    assert [row["peak_memory(MB)"] for row in table_of(tmp_path / "t.csv")] == ["7.0", ""]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot(tmp_path: Path, suffix: str) -> None:
    """A line for each length, over batch sizes. Oracle: the format's first bytes, the labels."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "deep" / f"plot.{suffix}"
    done = [measurement(batch=b, input_len=n) for n in (60, 90) for b in (1, 2)]
    plot_throughput(done, path, "a title")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        for text in (b"a title", b"prompt [tokens]", b"90", b"time to first token [s]", b"batch"):
            assert b"<!-- %s -->" % text in data


@pytest.mark.parametrize(
    ("runs", "axis", "places"),
    [
        ([(4, 60), (1, 60), (2, 60)], "batch, prompts of 60 tokens", {"60": [1, 2, 4]}),
        ([(1, 60), (1, 60)], "batch, prompts of 60 tokens", {"60": [1]}),
        ([(2, 90), (2, 60), (2, 60)], "prompt [tokens], batch of 2", {"": [60, 90]}),
        ([(2, 90), (1, 90), (1, 60)], "batch", {"60": [1], "90": [1, 2]}),
    ],
)
def test_lines_run_from_left_to_right(
    runs: list[tuple[int, int]], axis: str, places: dict[str, list[int]]
) -> None:
    """In whatever order and however often was measured. Oracle: lines, places and axis by hand."""
    found, lines = _lines([measurement(batch=b, input_len=n) for b, n in runs])
    assert found == axis
    assert {label: list(points) for label, points in lines.items()} == places
    assert sum(len(same) for points in lines.values() for same in points.values()) == len(runs)


@given(st.sets(st.integers(1, 20_000), min_size=1))
def test_ticks_do_not_overlap(places: set[int]) -> None:
    """The first place has one, and every other that is not too near to the one before.

    Oracle: the room for 36 digits below a panel, shared evenly.
    """
    ticks = _ticks(sorted(places))
    span, digits = max(places) - min(places), len(str(max(places)))
    assert ticks[0] == min(places)
    assert set(ticks) <= places
    assert all((b - a) * 36 >= span * digits for a, b in itertools.pairwise(ticks))
    for place in places - set(ticks):
        before = max(tick for tick in ticks if tick < place)
        assert (place - before) * 36 < span * digits


def test_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another suffix, or no matplotlib: refused with what helps. Oracle: the messages."""
    with pytest.raises(UsageError, match=r"cannot be written as .*plot\.txt"):
        plot_throughput([measurement()], tmp_path / "plot.txt", "")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolchainError, match="needs matplotlib") as raised:
        plot_throughput([measurement()], tmp_path / "plot.png", "")
    assert "axcore[evaluate]" in raised.value.hint


# Memory ------------------------------------------------------------------------------------------


def test_a_peak_is_that_of_its_time() -> None:
    """Memory that came and went counts; what went before does not.

    Oracle: 80 MB written in between.
    """
    before, size = PeakMemory(), 80_000_000
    if before.host_bytes is None:
        pytest.skip("this system keeps no peak that can be reset")
    quiet = before.host_bytes
    np.ones(size, np.uint8)
    assert before.host_bytes - quiet > 0.9 * size
    later = PeakMemory().host_bytes
    assert later is not None
    assert math.isclose(later, quiet, abs_tol=0.5 * size)


def onnx_petabyte() -> None:
    """Have ONNX Runtime make an array of that size."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        "g (uint8[1] x, int64[1] shape) => (uint8[n] y) { y = Expand(x, shape) }"
    ).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones(1, np.uint8), "shape": np.array([PETABYTE])})


def accelerator_petabyte() -> None:
    """A stand-in for an accelerator: the exception without its words."""
    raise torch.OutOfMemoryError("tried in vain")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.empty(PETABYTE, np.uint8),
        lambda: torch.empty(PETABYTE, dtype=torch.uint8),
        lambda: bytearray(PETABYTE),
        onnx_petabyte,
        accelerator_petabyte,
    ],
    ids=["numpy", "torch", "python", "onnxruntime", "accelerator"],
)
def test_whatever_runs_out_of_memory(allocate: Callable[[], object]) -> None:
    """Each library has its own exception. Oracle: what it raises for a petabyte."""
    with (
        pytest.raises(BudgetError, match=r"too much\n  .") as raised,
        explained_memory("too much", "less"),
    ):
        allocate()
    assert raised.value.hint == "less"
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), KeyError("memory"), OSError(5, "io")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    """A bug is no lack of memory. Oracle: the exception itself."""
    with pytest.raises(type(error)) as raised, explained_memory("too much", "less"):
        raise error
    assert raised.value is error
