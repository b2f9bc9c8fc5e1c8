"""What is measured: one function for each part of the table."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .measure import Run, axcore, bare_interpreter_bytes, run, script

ORDINARY_GB = 20  # memory that the ordinary way may take at the published size
REPEATS = 3
PAIRS = 5
STARTS = 10


@dataclass(frozen=True)
class Case:
    """A model to be measured.

    Attributes:
        model: Its id.
        tower: Prefixes of the vision side's tensors on disk.
        most_gb: Memory that an export may take.
        depths: Depth of the tower to the changes of the config that make it so deep, and the
            language model small.
        ordinary: The script of this folder that exports its tower in the ordinary way.
        slack_s: Seconds that an export may take beyond the floor.
        folding: Options that make `convert` write the language model anew.
    """

    model: str
    tower: tuple[str, ...]
    most_gb: float
    depths: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    ordinary: str | None = None
    slack_s: float | None = None
    folding: tuple[str, ...] = ()


CASES = [
    Case(
        model="qwen2.5-vl-3b",
        ordinary="ordinary_qwen25vl",
        tower=("visual.",),
        most_gb=0.9,
        depths={
            depth: {"vision_config": {"depth": depth}, "num_hidden_layers": 1, "vocab_size": 512}
            for depth in (8, 16, 32)
        },
    ),
    Case(
        model="minicpm-v-4",
        tower=("vpm.", "resampler."),
        most_gb=1.0,
        slack_s=15,
        depths={
            depth: {
                "vision_config": {"num_hidden_layers": depth},
                "num_hidden_layers": 1,
                "vocab_size": 512,
            }
            for depth in (9, 27)
        },
    ),
    Case(
        model="minicpm-v-2", tower=("vpm.", "resampler."), most_gb=1.0, folding=("--fold-scales",)
    ),
    Case(model="internvl3.5-1b", tower=("vision_model.", "mlp1."), most_gb=0.9, slack_s=12),
]


@dataclass(frozen=True)
class Row:
    """A line of the table; `met` is None where there is no target."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None


@dataclass
class Bench:
    """One case under measurement.

    Attributes:
        case: The model.
        size: "full" or, to try the benchmarks themselves, "tiny".
        work: Where outputs go; everything is removed once it is measured.
        pictures: A folder of photographs.
        ordinary: Whether to run the ordinary way too.
    """

    case: Case
    size: str
    work: Path
    pictures: Path
    ordinary: bool

    @cached_property
    def checkpoint(self) -> str:
        """The fabricated checkpoint, made by the first run and kept for later ones."""
        return str(script("fabricate", self.case.model, "--size", self.size).json)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder below `work` that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            yield Path(folder)

    def export(self, *arguments: object) -> Run:
        """Export the tower into a folder that is gone afterwards."""
        with self.folder() as folder:
            return script("export", *(arguments or (self.checkpoint,)), folder)


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
        weights = ("--weights", f"random-{bench.size}", "--images", bench.pictures, "-o", out)
        command = ("convert", bench.case.model, *weights, "--no-verify")
        first, again = axcore(*command), axcore(*command)
        yield Row("whole `convert --no-verify`", both(first), "≤ 1.2 GB", first.peak_bytes <= 1.2e9)
        yield Row("the same `convert` again", both(again), "≤ 3 s", again.seconds <= 3)
        verify = axcore("verify", out, "--json")
    inferences = sum(part["onnx_s"] + part["torch_s"] for part in verify.json)
    ratio = verify.seconds / inferences
    yield Row("`verify` of the tower on one picture", both(verify),
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
    "convert": convert_rows,
    "growth": growth_rows,
    "runtime": runtime_rows,
    "embedding": embedding_rows,
    "folding": folding_rows,
    "startup": startup_rows,
}


def middle(runs: Sequence[Run]) -> Run:
    """Return the run of median time."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def both(run: Run) -> str:
    """Return time and memory as text."""
    return f"{run.seconds:.1f} s, {run.peak_bytes / 1e9:.2f} GB"


def outcome(run: Run) -> str:
    """Return time and memory, or how it failed."""
    return run.failure or both(run)


def available_bytes() -> int:
    """Return the memory that a new process can have."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024
