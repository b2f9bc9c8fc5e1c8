"""The part of the table about language models: built as layer models, and asked."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .bench import REPEATS, Bench, Row
from .measure import axcore, both, run, script

QUESTION = "What is in the image?"
TOKENS = 64
DTYPES = ("float32", "bfloat16")


def answer_rows(bench: Bench) -> Iterator[Row]:
    """Layer models, an answer by the command line, and the same by transformers."""
    if not bench.case.answers:
        return
    with bench.folder() as folder:
        bundle = folder / "bundle"
        bench.convert(bundle)
        yield from build_rows(bundle, folder)
        yield from run_rows(bench, bundle)
        if bench.case.compared:
            yield from generate_rows(bench, bundle, folder)


def build_rows(bundle: Path, folder: Path) -> Iterator[Row]:
    """Building layer models against `cp` of what is written, in turns; the last ones stay."""
    builds, copied = [], []
    for _ in range(REPEATS):
        made = layer_files(bundle)
        for path in made:
            path.unlink()
        builds.append(script("layers", bundle))
        made = layer_files(bundle)
        copy = folder / "copy"
        copy.mkdir()
        copied.append(run("cp", *map(str, made), str(copy)).seconds)
        shutil.rmtree(copy)
    count = sum(path.stat().st_size for path in made)
    ours = statistics.median(build.seconds for build in builds)
    theirs = statistics.median(copied)
    trace = statistics.median(build.json["trace"] for build in builds)
    what = f"layer models, {count / 1e9:.1f} GB (trace {trace:.1f} s), against `cp`"
    measured = f"{ours:.1f} s against {theirs:.1f} s: {ours / theirs:.2f}x"
    # Importing and tracing take the same few seconds for any model: no measure of a small one.
    large = count > 5e9
    yield Row(what, measured, *(("≤ 2x", ours <= 2 * theirs) if large else ()))
    peak = max(build.peak_bytes for build in builds)
    yield Row("the same, memory", f"{peak / 1e9:.2f} GB", "≤ 1.2 GB", peak <= 1.2e9)


def layer_files(bundle: Path) -> list[Path]:
    """Return the layer models in a bundle, and their weights."""
    return [path for name in ("together", "post") for path in bundle.glob(f"*_{name}.onnx*")]


def run_rows(bench: Bench, bundle: Path) -> Iterator[Row]:
    """One answer about an image, by the command line."""
    asked = ("--image", bench.image, "--prompt", QUESTION, "--max-new-tokens", TOKENS)
    answer = axcore("run", bundle, *asked, "--json")
    said = answer.json
    yield Row(
        f"`axcore run`, {said['prompt_tokens']} prompt tokens, {len(said['token_ids'])} new",
        f"{both(answer)}; first token after {said['first_token_s']:.1f} s,"
        f" then {said['tokens_per_s']:.1f} tokens/s",
        "≤ 20 GB",
        answer.peak_bytes <= 20e9,
    )


def generate_rows(bench: Bench, bundle: Path, folder: Path) -> Iterator[Row]:
    """The loop against transformers' greedy `generate` on the same rows, in turns."""
    plain, rows = folder / "plain", folder / "rows.npy"
    script("generate", "write", bench.checkpoint, plain)
    ours: list[dict[str, Any]] = []
    theirs: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in DTYPES}
    for _ in range(REPEATS):
        asked = (bundle, bench.image, rows, "--question", QUESTION, "--tokens", TOKENS)
        ours.append(script("answer", *asked).json)
        for dtype, measured in theirs.items():
            given = ("--tokens", TOKENS, "--dtype", dtype)
            measured.append(script("generate", "run", plain, rows, *given).json)
    count = ours[0]["prompt"]
    for what, name in ((f"prefill of {count} tokens", "prefill_s"), ("decode", "decode_s")):
        for dtype, measured in theirs.items():
            mine, other = median_of(ours, name), median_of(measured, name)
            yield Row(f"{what}, against transformers in {dtype}",
                      f"{mine:.2f} s against {other:.2f} s: {other / mine:.2f}x as fast",
                      "≥ 1x", mine <= other)  # fmt: skip
    seconds = median_of(ours, "decode_s")
    yield Row(f"decode, {TOKENS} tokens", f"{(TOKENS - 1) / seconds:.1f} tokens/s")
    share = statistics.median(1 - one["run_s"] / one["decode_s"] for one in ours)
    yield Row("the loop itself, of decode time", f"{share:.1%}", "≤ 2 %", share <= 0.02)


def median_of(measured: Sequence[dict[str, Any]], name: str) -> float:
    """Return the median of one figure."""
    middle: float = statistics.median(one[name] for one in measured)
    return middle
