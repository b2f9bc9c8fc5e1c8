"""The parts of the table: one function each. Here are those about converting a model."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .answers import answer_rows
from .bench import REPEATS, Bench, Row
from .judging import caption_rows, clip_rows
from .measure import Run, axcore, bare_interpreter_bytes, both, middle, outcome, run, script
from .refusals import refusal_rows

ORDINARY_GB = 20  # memory that the ordinary way may take at the published size
PAIRS = 5
STARTS = 10


def export_rows(bench: Bench) -> Iterator[Row]:
    """The vision export, its floor, and the ordinary way."""
    bench.checkpoint  # noqa: B018  (fabricated before anything is timed)
    exports, floors = [], []
    for _ in range(REPEATS):
        exports.append(bench.export())
        with bench.folder() as folder:
            prefix = ("--prefix", *bench.case.tower)
            floors.append(script("floor", bench.checkpoint, folder / "floor.bin", *prefix))
    export, floor = middle(exports), middle(floors)
    phases = ", ".join(f"{name} {s:.1f} s" for name, s in export.json["seconds"].items())
    yield Row("floor: read bfloat16, widen, write float32 (numpy)", both(floor))
    yield Row(
        f"vision export, slim and save ({phases})",
        f"{both(export)}; {export.seconds / floor.seconds:.1f}x the floor",
        f"≤ {bench.case.most_gb} GB",
        export.peak_bytes <= bench.case.most_gb * 1e9,
    )
    if (slack := bench.case.slack_s) is not None:
        beyond = export.seconds - floor.seconds
        yield Row(
            "the same, beyond the floor", f"{beyond:.1f} s", f"≤ {slack:g} s", beyond <= slack
        )
    if bench.ordinary and bench.case.ordinary:
        yield from ordinary_rows(bench, export)


def native_rows(bench: Bench) -> Iterator[Row]:
    """The vision export from the layout that newer transformers write."""
    if not bench.case.native:
        return
    with bench.folder() as folder:
        options = ("--size", bench.size, "--native", bench.case.native, "--folder", folder / "in")
        made = script("fabricate", bench.case.model, *options).json
        export = middle([bench.export(made) for _ in range(REPEATS)])
    most = bench.case.most_gb
    yield Row("vision export from the layout of newer transformers", both(export),
              f"≤ {most} GB", export.peak_bytes <= most * 1e9)  # fmt: skip


def ordinary_rows(bench: Bench, export: Run) -> Iterator[Row]:
    """transformers, torch.onnx.export and onnxslim, each measured by itself, against `export`."""
    if (available := available_bytes()) < ORDINARY_GB * 1e9 and bench.size == "full":
        reason = f"not run: {available / 1e9:.0f} GB of memory are available"
        yield Row("ordinary way", reason, f"{ORDINARY_GB} GB to try")
        return
    with bench.folder() as folder:
        traced, slimmed = folder / "tower.onnx", folder / "slim.onnx"
        exported = script(str(bench.case.ordinary), bench.checkpoint, traced, check=False)
        yield Row("ordinary: from_pretrained and torch.onnx.export", outcome(exported))
        if exported.code:
            return
        slim = run(sys.executable, "-m", "onnxslim", str(traced), str(slimmed), check=False)
        yield Row("ordinary: onnxslim", outcome(slim))
    seconds = exported.seconds + slim.seconds
    faster = seconds / export.seconds
    smaller = max(exported.peak_bytes, slim.peak_bytes) / export.peak_bytes
    yield Row(f"vision export against the ordinary {seconds:.0f} s",
              f"{faster:.1f}x faster", "≥ 5x", faster >= 5)  # fmt: skip
    yield Row("the same, memory", f"1/{smaller:.0f}", "≤ 1/20", smaller >= 20)


def convert_rows(bench: Bench) -> Iterator[Row]:
    """The whole conversion, the same again, and verification of its bundle."""
    bench.checkpoint  # noqa: B018  (as above)
    with bench.folder() as folder:
        out = folder / "bundle"
        first, again = bench.convert(out), bench.convert(out)
        yield Row("whole `convert --no-verify`", both(first), "≤ 1.2 GB", first.peak_bytes <= 1.2e9)
        yield Row("the same `convert` again", both(again), "≤ 3 s", again.seconds <= 3)
        verify = axcore("verify", out, "--json")
    inferences = sum(part["onnx_s"] + part["torch_s"] for part in verify.json)
    ratio = verify.seconds / inferences
    yield Row("`verify` of the tower on one image", both(verify),
              "≤ 4.5 GB", verify.peak_bytes <= 4.5e9)  # fmt: skip
    yield Row("the same, against its two inferences", f"{ratio:.1f}x of {inferences:.1f} s",
              "≤ 2x", ratio <= 2)  # fmt: skip


def growth_rows(bench: Bench) -> Iterator[Row]:
    """Time of tracing and memory of an export for towers of growing depth."""
    if not bench.case.depths:
        return
    traced, peaks = [], []
    for changes in bench.case.depths.values():
        with bench.folder() as folder:
            options = ("--folder", folder / "checkpoint", "--changes", json.dumps(changes))
            made = script("fabricate", bench.case.model, *options)
            exports = [bench.export(made.json) for _ in range(REPEATS)]
        traced.append(statistics.median(export.json["seconds"]["trace"] for export in exports))
        peaks.append(middle(exports).peak_bytes / 1e9)
    depths = ", ".join(map(str, bench.case.depths))
    for name, values, unit in (("tracing", traced, "s"), ("memory of an export", peaks, "GB")):
        measured = ", ".join(f"{value:.2f}" for value in values)
        growth = values[-1] / values[0]
        yield Row(f"{name}, {depths} blocks", f"{measured} {unit}; {growth:.2f}x",
                  "independent of depth: ≤ 1.25x", growth <= 1.25)  # fmt: skip


def runtime_rows(bench: Bench) -> Iterator[Row]:
    """The exported graph under ONNX Runtime, against the same tower with masked attention."""
    if not bench.case.ordinary:  # only a tower with windows has a masked form
        return
    with bench.folder() as patched, bench.folder() as plain:
        files = [
            *script("export", bench.checkpoint, patched).json["files"],
            *script("export", bench.checkpoint, plain, "--plain-attention").json["files"],
        ]
        batched, masked = script("runtime", *files, "--runs", PAIRS).json
    ratio = masked / batched
    yield Row("ONNX Runtime: batched windows against the masked matrix",
              f"{batched:.2f} s against {masked:.2f} s: {ratio:.2f}x faster",
              "≥ 1.15x", ratio >= 1.15)  # fmt: skip


def embedding_rows(bench: Bench) -> Iterator[Row]:
    """Extraction of the token embedding against `cp` of the same bytes, in turns."""
    taken, copied, peaks = [], [], []
    with bench.folder() as folder:
        first = script("embedding", bench.checkpoint, folder).json["file"]
        source, copy = folder / "source.bin", folder / "copy.bin"
        shutil.move(first, source)
        for _ in range(PAIRS):
            extraction = script("embedding", bench.checkpoint, folder)
            Path(first).unlink()
            taken.append(extraction.json["seconds"])
            peaks.append(extraction.peak_bytes)
            copied.append(run("cp", str(source), str(copy)).seconds)
            copy.unlink()
        count = source.stat().st_size
    ours, theirs = statistics.median(taken), statistics.median(copied)
    yield Row(f"embedding, {count / 1e6:.0f} MB, against `cp`",
              f"{ours:.2f} s against {theirs:.2f} s: {ours / theirs:.2f}x",
              "≤ 1.5x", ours <= 1.5 * theirs)  # fmt: skip
    extra = statistics.median(peaks) - bare_interpreter_bytes()
    yield Row("the same, memory over the bare interpreter", f"{extra / 1e6:.0f} MB",
              "≤ 150 MB", extra <= 150e6)  # fmt: skip


def folding_rows(bench: Bench) -> Iterator[Row]:
    """Writing the language model anew, against `cp` of the checkpoint, in turns."""
    if not bench.case.folding:
        return
    taken, copied, peaks = [], [], []
    shards = [str(path) for path in sorted(Path(bench.checkpoint).glob("*.safetensors"))]
    for _ in range(REPEATS):
        with bench.folder() as folder:
            folded = script("folding", bench.checkpoint, folder / "llm", *bench.case.folding)
            taken.append(folded.json["seconds"])
            peaks.append(folded.peak_bytes)
        with bench.folder() as folder:
            copied.append(run("cp", *shards, str(folder)).seconds)
    ours, theirs = statistics.median(taken), statistics.median(copied)
    yield Row(f"`{bench.case.folding[0]}`, {folded.json['bytes'] / 1e9:.1f} GB written, against"
              " `cp` of the checkpoint",
              f"{ours:.1f} s against {theirs:.1f} s: {ours / theirs:.2f}x",
              "≤ 2x", ours <= 2 * theirs)  # fmt: skip
    extra = statistics.median(peaks) - bare_interpreter_bytes()
    yield Row("the same, memory over the bare interpreter", f"{extra / 1e6:.0f} MB",
              "≤ 300 MB", extra <= 300e6)  # fmt: skip


def startup_rows(_: Bench) -> Iterator[Row]:
    """How long the command line takes to say something."""
    for argument in ("list-models", "--help"):
        seconds = statistics.median(axcore(argument).seconds for _ in range(STARTS))
        yield Row(f"`axcore {argument}`", f"{seconds:.2f} s", "≤ 0.3 s", seconds <= 0.3)


PARTS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "export": export_rows,
    "native": native_rows,
    "convert": convert_rows,
    "growth": growth_rows,
    "runtime": runtime_rows,
    "embedding": embedding_rows,
    "folding": folding_rows,
    "answers": answer_rows,
    "clip": clip_rows,
    "captions": caption_rows,
    "startup": startup_rows,
    "refusals": refusal_rows,
}


def available_bytes() -> int:
    """Return the memory that a new process can have."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024
