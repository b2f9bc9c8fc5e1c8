"""How fast a backend answers, for several prompts at once and for longer ones."""

from __future__ import annotations

import csv
import io
import json
import time
from bisect import bisect_right
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration import read_image
from ..errors import BudgetError, UsageError
from ..files import check_writable_file, explained_full_disk, write_atomic
from ..foreign import read_json
from ..limits import MEASUREMENTS, RECORD_BYTES
from ..plain import shown
from ..plugins import Registry
from ..progress import as_progress
from ..runtime.runner import Runner
from .images import Question
from .measurement import Measurement
from .memory import PeakMemory, explained_memory
from .plots import check_plot, plot_throughput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

    from ..language_model import Prompt
    from ..progress import Progress

Array = np.ndarray[Any, Any]
PROMPT = "Write an essay about this image, in at least 256 words."
BATCH_SIZES = tuple(range(1, 11))
OUTPUT_LEN = 256
WARM_UP = 2  # tokens
FILLER = " and"

COLUMNS = (
    "batch",
    "input_len",
    "output_len",
    "embedding_len",
    "first_token_time(ms)",
    "non_first_token_time(ms)",
    "ResponseTime(ms)",
    "E2E Throughput Average(Tokens/s)",
    "peak_memory(MB)",
)
MINDIE_COLUMNS = (*COLUMNS[:4], "fisrt_token_time(ms)", *COLUMNS[5:8])


def measure_throughput(
    bundle: Path,
    out: Path,
    *,
    image: Path | None = None,
    prompt: str = PROMPT,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    input_lens: Sequence[int] = (),
    output_len: int = OUTPUT_LEN,
    backend: str = "onnx",
    options: Mapping[str, str] | None = None,
    mindie_columns: bool = False,
    plot: Path | None = None,
    progress: Progress | bool | None = None,
    registry: Registry | None = None,
) -> list[Measurement]:
    """Measure every prompt length with every batch size, and write a table after each.

    A batch is one prompt repeated; its image is prepared and run once for each. A warm-up of
    `WARM_UP` tokens precedes each measurement. Decoding is greedy and ignores end tokens, so each
    answer has `output_len` tokens. If the sweep ends early, by an interruption or for lack of
    memory, table and plot keep the measurements made before.

    Args:
        out: The table, ending in ``.csv``. All figures are also written to a ``.json`` file of
            the same name, which may replace only that of an earlier run.
        image: An image; None measures text alone.
        prompt: Text after the image.
        input_lens: Lengths of the prompt in tokens, images included. Its text is padded to each,
            or to just below where whole words do not fit. If empty, it is used as it is.
        output_len: Tokens of an answer, 2 or more.
        mindie_columns: Name the columns as MindIE does, its misspelling included; memory is then
            in the JSON file alone.

    Raises:
        ImageError: The image cannot be read.
        UsageError: The backend does not run so many prompts at once, a prompt is longer than it
            is to be, or a file would replace another one.
        BundleError: A file cannot be written.
        BudgetError: Prompt and answer are longer than the model was built for, or a batch does
            not fit into memory.
        ToolchainError: A plot needs matplotlib.
        AxcoreError: The model cannot be run.
    """
    progress, registry, options = as_progress(progress), registry or Registry(), options or {}
    _check_numbers(batch_sizes, input_lens, output_len)
    details = _check_outputs(out, plot, image)
    shown = read_image(image) if image else None
    runner = Runner.open(bundle, registry, backend, options, progress, keep_vision=True)
    _check_batch(max(batch_sizes), runner, backend)
    questions = [_padded(runner, prompt, shown, length) for length in input_lens or (None,)]
    for question in questions:
        _check_room(runner, question, shown, output_len)
    facts = {
        "model": runner.deployment.job.card.id,
        "task": runner.deployment.job.task,
        "backend": backend,
        "options": dict(options),
        "image": str(image) if image else None,
        "prompt": prompt,
    }
    done: list[Measurement] = []
    runs = [(question, batch) for question in questions for batch in batch_sizes]
    try:
        with progress.task("measure", len(runs), "batches") as task:
            for question, batch in runs:
                with explained_memory(*_too_large(batch, out, done)):
                    _answer(runner, question, shown, batch, WARM_UP)
                    done.append(_answer(runner, question, shown, batch, output_len))
                write_table(out, done, mindie_columns=mindie_columns)
                _write_json(details, facts, done)
                task.advance()
    finally:
        if plot and done:
            title = f"{bundle.resolve().name}, {backend}, answers of {output_len} tokens"
            plot_throughput(done, plot, title)
    return done


def write_table(
    path: Path, measurements: Sequence[Measurement], *, mindie_columns: bool = False
) -> None:
    """Write the measurements as CSV, one line each.

    Raises:
        BudgetError: The disk is full; the file is as it was.
    """
    columns = MINDIE_COLUMNS if mindie_columns else COLUMNS
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(cells(one)[: len(columns)] for one in measurements)
    with explained_full_disk(path.parent):
        write_atomic(path, buffer.getvalue())


def cells(one: Measurement) -> list[str]:
    """Return a line of the table, under `COLUMNS`."""
    times = (one.first_token_ms, one.later_token_ms, one.response_ms, one.tokens_per_s)
    memory = one.device_peak_bytes or one.peak_bytes
    return [
        *map(str, (one.batch, one.input_len, one.output_len, one.embedding_len)),
        *(f"{value:.2f}" for value in times),
        "" if memory is None else f"{memory / 1e6:.1f}",
    ]


def _write_json(path: Path, facts: Mapping[str, Any], done: Sequence[Measurement]) -> None:
    derived = [
        asdict(one) | {"later_token_ms": one.later_token_ms, "tokens_per_s": one.tokens_per_s}
        for one in done
    ]
    with explained_full_disk(path.parent):
        write_atomic(path, json.dumps({**facts, "measurements": derived}, indent=2) + "\n")


# Measuring ---------------------------------------------------------------------------------------


def _answer(
    runner: Runner, question: Question, image: Image | None, batch: int, output_len: int
) -> Measurement:
    """Answer `batch` prompts from the beginning, and measure the times."""
    memory, moments = PeakMemory(), [time.perf_counter()]
    prompt, rows = _read(runner, question, image, batch)
    tokens = []
    for chosen in _greedy(runner, prompt, rows, output_len):
        tokens.append(chosen)
        moments.append(time.perf_counter())
    for ids in np.stack(tokens, axis=1):
        runner.tokenizer.decode(ids.tolist())
    finished = time.perf_counter()
    first, *steps = (1000 * (after - before) for before, after in pairwise(moments))
    return Measurement(
        batch=batch,
        input_len=len(prompt.input_ids),
        output_len=output_len,
        embedding_len=sum(map(len, prompt.places.values())),
        first_token_ms=first,
        step_ms=tuple(steps),
        response_ms=1000 * (finished - moments[0]),
        peak_bytes=memory.host_bytes,
        device_peak_bytes=memory.device_bytes,
    )


def _read(
    runner: Runner, question: Question, image: Image | None, batch: int
) -> tuple[Prompt, Array]:
    """Prepare every prompt and run its image; return one of them and the rows of all."""
    made = []
    for _ in range(batch):
        runner.forget()
        prompt = runner.prepare(question.messages(image))
        made.append(runner.rows(prompt))
    return prompt, np.stack(made)


def _greedy(runner: Runner, prompt: Prompt, rows: Array, output_len: int) -> Iterator[Array]:
    """Yield the likeliest token of each prompt, int64 ``[batch]``, `output_len` times."""
    runner.language.resume(0, len(prompt.input_ids))
    blocks = () if prompt.blocks is None else (prompt.blocks,)
    tokens = runner.language.prefill(rows, prompt.position_ids, *blocks).argmax(-1)
    yield tokens
    position = int(prompt.position_ids.max()) + 1
    for step in range(output_len - 1):
        state = runner.embeddings.rows(tokens)
        tokens = runner.language.decode(state, position + step).argmax(-1)
        yield tokens


def _too_large(batch: int, out: Path, done: Sequence[Measurement]) -> tuple[str, str]:
    """Return message and hint for a batch that does not fit into memory."""
    kept = f"{out} keeps the {len(done)} before it" if done else "nothing was measured before it"
    fewer = f"--batch-sizes below {batch}, or " if batch > 1 else ""
    return (
        f"a batch of {batch} does not fit into memory; {kept}",
        f"give {fewer}a shorter --input-lens or --output-len",
    )


# Before work starts ------------------------------------------------------------------------------


def _check_outputs(out: Path, plot: Path | None, image: Path | None) -> Path:
    """Return the file for all figures, after checking that every file can be written."""
    if out.suffix.lower() != ".csv":
        raise UsageError(
            f"the table cannot be written as {out or '.'}",
            hint="give -o a name that ends in .csv",
        )
    details = out.with_suffix(".json")
    _check_details(details)
    if plot:
        check_plot(plot)
        if image and plot.resolve() == image.resolve():
            raise UsageError(
                f"the plot {plot} would take the place of the image",
                hint="choose another name with --plot, or leave the plot out with --no-plot",
            )
    for path in filter(None, (out, details, plot)):
        check_writable_file(path)
    return details


def _check_details(path: Path) -> None:
    """Refuse to replace a JSON file of another kind, such as answers."""
    if not path.is_file():
        return
    try:
        known = isinstance(read_json(path, RECORD_BYTES)["measurements"], list)
    except (OSError, LookupError, TypeError, ValueError):
        known = False
    if not known:
        raise UsageError(
            f"{path}, the file for all figures, exists and holds something else",
            hint="choose another name with -o",
        )


def _padded(runner: Runner, prompt: str, image: Image | None, length: int | None) -> Question:
    """Return a question whose prompt has `length` tokens, or just below."""
    plain = Question(prompt)
    if length is None:
        return plain
    if length > runner.language.context:  # before a text of that length is made
        raise UsageError(
            f"a prompt of {length} tokens is asked for; this build has"
            f" {runner.language.context} positions",
            hint="leave it out of --input-lens, or convert with a longer --kv-cache-len",
        )

    def count(fillers: int) -> int:
        try:
            padded = replace(plain, prompt=prompt + FILLER * fillers)
            return len(runner.prepare(padded.messages(image)).input_ids)
        except BudgetError:
            return runner.language.context + 1

    shortest = count(0)
    if shortest > length:
        raise UsageError(
            f"the prompt has {shortest} tokens before any padding, {length} are asked for",
            hint="leave the shorter lengths out of --input-lens, or shorten --prompt",
        )
    # Each filler is a token at least.
    fillers = bisect_right(range(length - shortest + 1), length, key=count) - 1
    return replace(plain, prompt=prompt + FILLER * fillers)


def _check_numbers(batch_sizes: Sequence[int], input_lens: Sequence[int], output_len: int) -> None:
    sensible = batch_sizes and min((*batch_sizes, *input_lens)) >= 1 and output_len >= WARM_UP
    if not sensible or max(len(batch_sizes), len(input_lens)) > MEASUREMENTS:
        raise UsageError(
            f"batch sizes {shown(list(batch_sizes))}, input lengths {shown(list(input_lens))} and"
            f" an output length of {output_len} cannot be measured",
            hint=f"give sizes and lengths of 1 or more, at most {MEASUREMENTS}, and 2 output"
            " tokens or more",
        )


def _check_batch(wanted: int, runner: Runner, backend: str) -> None:
    most = runner.language.max_batch
    if wanted > most:
        raise UsageError(
            f"a batch of {wanted} was asked for; backend `{backend}` runs {most} with these layer"
            " models",
            hint=f"give --batch-sizes {most if most == 1 else f'1-{most}'}; for more,"
            f" `axcore build {runner.deployment.folder} --toolchain onnx --dynamic-batch` and"
            " --backend onnx, or --backend torch",
        )


def _check_room(runner: Runner, question: Question, image: Image | None, output_len: int) -> None:
    count = len(runner.prepare(question.messages(image)).input_ids)
    context = runner.language.context
    # The last token is not read again.
    if count + output_len - 1 > context:
        raise BudgetError(
            f"a prompt of {count} tokens and {output_len} new ones need"
            f" {count + output_len - 1} positions; this build has {context}",
            hint=f"give an --output-len of at most {max(0, context + 1 - count)}, or convert with a"
            " longer --kv-cache-len",
        )
