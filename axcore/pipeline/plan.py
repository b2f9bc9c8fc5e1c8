"""What a conversion will write, need and run, before any weight is read."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..component import Port, heads, sources
from ..errors import BudgetError
from ..language.layer_types import other_layers
from ..language_model import LlmBuildArgs, table_file
from ..plain import plain
from ..step import STATE
from ..toolchains.contract import BuildRequest, Forecast, Forecaster
from .prepared import LLM_FOLDER, image_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..calibration import Found
    from ..component import Component
    from .prepared import Prepared

# Measured on two cores (docs/benchmarks.md); a plan rounds them anyway.
_BASE_BYTES = 520_000_000  # interpreter, torch, onnx, and what tracing leaves behind
_IN_FLIGHT_BYTES = 200_000_000  # weights between shard and file
_VERIFY_BYTES = 400_000_000  # inference buffers beside the weights
_TRACE_S = 1.2  # per kind
_START_S = 4.0
_WRITE_BYTES_PER_S = 350e6
_MULTIPLY_ADDS_PER_S = 45e9  # of both inferences together
_GRAPH_BYTES = 600_000  # an ONNX file without weights
_MARGIN = 1.05


@dataclass(frozen=True)
class PlannedFile:
    """A file to be written, and its approximate size."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PlannedComponent:
    """A component: ports, how many stages and kinds, parameters."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stages: int
    kinds: int
    parameters: int
    largest_stage: int


@dataclass(frozen=True)
class Plan:
    """A conversion as foreseen.

    Attributes:
        model, family, task, checkpoint: What is converted, and how.
        components: The vision side.
        files: What will be in the bundle.
        peak_bytes: Greatest resident memory.
        disk_bytes: Room needed.
        seconds: A rough time on two cores.
        rows: Rows one image (or temporal step) gives the language model.
        max_prompt: Tokens a prompt may have.
        llm: Build arguments of the language model.
        prepared_files: What the toolchain will find: configurations and the script with the
            exact commands.
        board: What the toolchain foresees of the board.
        notes: What the user should know.
    """

    model: str
    family: str
    task: str
    checkpoint: str
    components: tuple[PlannedComponent, ...]
    files: tuple[PlannedFile, ...]
    peak_bytes: int
    disk_bytes: int
    seconds: float
    rows: int
    max_prompt: int
    llm: LlmBuildArgs
    prepared_files: dict[str, str]
    board: Forecast
    notes: tuple[str, ...]


def make_plan(prepared: Prepared, data: Found) -> Plan:
    """Foresee a conversion; reads tensor headers only."""
    job, request = prepared.job, prepared.request
    components = tuple(_component(component) for component in prepared.components)
    samples = sample_counts(prepared, data)
    build = prepared.build_request(samples)
    texts = dict(prepared.chosen.toolchain.prepare(build))
    files = tuple(_files(prepared, build, texts))
    itemsize = job.options.itemsize
    largest = max(part.parameters for part in components) * itemsize
    verified = request.verify and job.options.dtype in ("float32", "float16")
    stage_bytes = max(part.largest_stage for part in components) * itemsize
    return Plan(
        model=job.card.id,
        family=job.family,
        task=job.task,
        checkpoint=str(job.checkpoint.folder.resolve()),
        components=components,
        files=files,
        peak_bytes=_BASE_BYTES
        + max(_IN_FLIGHT_BYTES + stage_bytes, (largest + _VERIFY_BYTES) if verified else 0),
        disk_bytes=sum(file.bytes for file in files),
        seconds=_seconds(prepared, components, files, verified),
        rows=image_rows(prepared.components),
        max_prompt=job.profile.max_prompt,
        llm=prepared.llm,
        prepared_files=texts,
        board=_board(prepared, build, files),
        notes=tuple(notes(prepared, data)),
    )


def sample_counts(prepared: Prepared, data: Found) -> dict[str, int]:
    """Return how many calibration samples each graph file will have.

    There is one per group of images or arrays, or what an archive holds.
    """
    if prepared.archive is not None:
        (component,) = prepared.components
        return {component.stem: prepared.archive.samples(component.calibration.format)}
    first, of = heads(sources(prepared.components)), {c.name: c for c in prepared.components}
    counts: dict[str, int] = {}
    for component, graph in prepared.files:
        head = of[first[component.name]]
        counts[graph.stem] = len(data.of(head.media)) // head.images_per_sample
    return counts


def notes(prepared: Prepared, data: Found) -> list[str]:
    """Return what the user should know of this conversion, a line each."""
    found = list(prepared.llm.notes)
    dtype = prepared.job.options.dtype
    if dtype == "float16":
        found.append(
            "float16: vendor tools fuse Sigmoid and Mul into SiLU with a large error in this"
            " precision; prefer float32"
        )
    if dtype == "bfloat16":
        found.append(
            "bfloat16: ONNX Runtime in Python cannot run the graph, so it is not verified, and"
            " vendor tools written in Python may fail on it; prefer float32"
        )
    if not prepared.request.vision_only:
        found += _vendor_notes(prepared)
    if not data.all and prepared.archive is None:
        found.append("no calibration images: give --images before building")
    if not any((prepared.job.checkpoint.folder / name).exists() for name in TOKENIZER_FILES):
        found.append("the checkpoint has no tokenizer: it converts, but cannot be run")
    return found


def _vendor_notes(prepared: Prepared) -> list[str]:
    """Say what builders of vendors do not make of the language model, or leave to the host."""
    found = []
    if others := other_layers(prepared.job.text_config, prepared.job.profile.kv_cache_len + 1):
        found.append(
            f"the language model has {others}: `--toolchain onnx` builds what its family"
            " implements; ask whether a vendor's builder and runtime know them"
        )
    ports = (port for component in prepared.components for port in component.outputs)
    if layers := sorted({port.layer for port in ports if port.layer is not None}):
        listed = ", ".join(map(str, layers))
        found.append(
            f"rows of the vision side are added behind decoder layers {listed}: the program on the"
            " board does so between layer models, as `axcore run` does"
        )
    if prepared.tables:
        listed = ", ".join(table.name for table in prepared.tables)
        found.append(
            f"decoder layers take columns of further tables ({listed}), which only"
            " `--toolchain onnx` builds"
        )
    return found


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check_room(plan: Plan, out: Path) -> None:
    """Refuse a conversion that disk or memory cannot hold.

    Raises:
        BudgetError: With the figures and what would help.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    staged = sum(path.stat().st_size for path in (out / STATE).rglob("*") if path.is_file())
    if free + staged < plan.disk_bytes * _MARGIN:
        raise BudgetError(
            f"the bundle needs {plan.disk_bytes / 1e9:.1f} GB,"
            f" the disk of {existing} has {free / 1e9:.1f} GB",
            hint="make room, choose another folder with -o, or use --dtype float16",
        )
    available = psutil.virtual_memory().available
    if available < plan.peak_bytes:
        raise BudgetError(
            f"the conversion needs about {plan.peak_bytes / 1e9:.1f} GB of memory,"
            f" {available / 1e9:.1f} GB are available",
            hint="close other programs, or leave verification for later with --no-verify",
        )


def _board(prepared: Prepared, build: BuildRequest, files: Sequence[PlannedFile]) -> Forecast:
    toolchain = prepared.chosen.toolchain
    if prepared.request.vision_only or not isinstance(toolchain, Forecaster):
        return Forecast()
    data = {f"{graph.stem}.onnx.data": graph.stem for graph in build.graphs}
    sizes = {data[file.name]: file.bytes for file in files if file.name in data}
    return toolchain.forecast(build, prepared.job.text_config, sizes)


def _component(component: Component) -> PlannedComponent:
    counts = [sum(p.numel() for p in stage.module.parameters()) for stage in component.stages]
    return PlannedComponent(
        component.name,
        component.inputs,
        component.outputs,
        len(component.stages),
        len({stage.kind for stage in component.stages}),
        sum(counts),
        max(counts),
    )


def _files(prepared: Prepared, build: BuildRequest, texts: dict[str, str]) -> list[PlannedFile]:
    from ..graph.export import part_stems
    from ..graph.split import part_bytes, stage_bytes
    from ..language.checkpoint import checkpoint_bytes
    from ..language.embedding import ALWAYS, FORMATS

    itemsize = prepared.job.options.itemsize
    files = []
    for component, cuts in zip(prepared.components, prepared.cuts, strict=True):
        sizes = part_bytes(stage_bytes(component, itemsize), cuts)
        for stem, size in zip(part_stems(component, cuts), sizes, strict=True):
            files.append(PlannedFile(f"{stem}.onnx", _GRAPH_BYTES))
            files.append(PlannedFile(f"{stem}.onnx.data", size))
    for graph in build.graphs:
        if graph.samples:
            size = _archive_bytes(graph.inputs) * graph.samples
            given = prepared.archive
            files.append(PlannedFile(graph.archive, given.path.stat().st_size if given else size))
    if prepared.embedding is not None:
        count = math.prod(prepared.embedding.shape)
        for form in (ALWAYS, *prepared.job.options.embedding_formats):
            files.append(PlannedFile(FORMATS[form], count * (2 if form == ALWAYS else 4)))
        for table in prepared.tables:
            files.append(PlannedFile(table_file(table.name), 2 * math.prod(table.shape)))
    if prepared.llm.checkpoint is not None:
        size = checkpoint_bytes(prepared.job.checkpoint, prepared.llm.checkpoint)
        files.append(PlannedFile(f"{LLM_FOLDER}/*.safetensors", size))
    files += [PlannedFile(name, len(text.encode())) for name, text in texts.items()]
    return files


def _archive_bytes(ports: Sequence[Port]) -> int:
    """Bytes of a sample's arrays, twice: in its folder and in the archive."""
    return 2 * sum(math.prod(port.shape) for port in ports)


def _seconds(
    prepared: Prepared,
    components: Sequence[PlannedComponent],
    files: Sequence[PlannedFile],
    verified: bool,
) -> float:
    seconds = _START_S + _TRACE_S * sum(part.kinds for part in components)
    seconds += sum(file.bytes for file in files) / _WRITE_BYTES_PER_S
    if verified:
        work = sum(part.parameters * max(part.inputs[0].shape[-2], 1) for part in components)
        seconds += 2 * work / _MULTIPLY_ADDS_PER_S
    return round(seconds)


def describe(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON-like data."""
    return dict(plain(plan))
