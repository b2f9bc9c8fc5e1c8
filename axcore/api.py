"""The library's verbs, the same that the command line has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .choices import resolve
from .errors import UsageError
from .plugins import Registry
from .progress import Progress, Silent, as_progress
from .request import Options

if TYPE_CHECKING:
    from .bundle import Bundle
    from .graph.lint import Finding
    from .graph.verify import Verification
    from .packaging import Runtime
    from .pipeline.job import Request, Source, Weights
    from .pipeline.plan import Plan
    from .plugins import Entry
    from .quantization.gptq import Device, Quantised
    from .runtime.runner import Runner


def list_models(registry: Registry | None = None) -> list[Entry]:
    """Return the models of every installed family."""
    return (registry or Registry()).entries


def plan(
    model: str,
    *,
    out: Path | None = None,
    checkpoint: str | None = None,
    weights: Weights | None = None,
    source: Source = "huggingface",
    revision: str | None = None,
    images: Sequence[Path] = (),
    calibration_archive: str | None = None,
    options: Options | None = None,
    verify: bool = True,
    vision_only: bool = False,
    toolchain: str = "pulsar2",
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Plan:
    """Say what `convert` would write, need and run; reads no weight.

    Args:
        model: Id, alias or checkpoint folder.
        out: Where the bundle would go; its disk is checked. None checks nothing.
        checkpoint: Folder or Hugging Face id; None takes the card's repository.
        weights: "random-tiny" or "random-full" fabricates a checkpoint of the card's layout.
        source: "huggingface" or "modelscope".
        revision: Branch, tag or commit.
        images: Folders, archives or files with calibration images.
        calibration_archive: File or URL of an archive of finished calibration samples, used as it
            is in place of `images`.
        options: Size, precision, lengths and target.
        verify: Whether `convert` would compare with PyTorch.
        vision_only: Leave the language model's side out.
        toolchain: Whose configuration is written.
        progress: Where to report.
        registry: The plugins; None finds the installed ones.

    Raises:
        AxcoreError: One of its subclasses says what is wrong.
    """
    from .calibration import find_archive, find_images
    from .pipeline.job import open_job
    from .pipeline.plan import check_room, make_plan
    from .pipeline.prepared import prepare

    request = _request(locals())
    registry, progress = registry or Registry(), progress or Silent()
    job = open_job(request, registry, progress)
    archive = find_archive(calibration_archive, progress) if calibration_archive else None
    with job.checkpoint:
        prepared = prepare(request, registry, job, archive)
        made = make_plan(prepared, find_images(images) if images else [])
    if out is not None:
        check_room(made, out)
    return made


def convert(
    model: str,
    out: Path,
    *,
    checkpoint: str | None = None,
    weights: Weights | None = None,
    source: Source = "huggingface",
    revision: str | None = None,
    images: Sequence[Path] = (),
    calibration_archive: str | None = None,
    options: Options | None = None,
    verify: bool = True,
    vision_only: bool = False,
    toolchain: str = "pulsar2",
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Bundle:
    """Fill `out` with everything a board build needs; see `plan` for the arguments.

    Run again it continues: finished steps are kept. `out` changes only after every step has
    succeeded.

    Raises:
        AxcoreError: One of its subclasses says what is wrong.
    """
    from .pipeline.convert import convert as run

    return run(_request(locals()), Path(out), registry or Registry(), progress or Silent())


def verify(
    bundle: Path,
    *,
    images: Sequence[Path] = (),
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> list[Verification]:
    """Compare a bundle's graphs with PyTorch on one image.

    Args:
        bundle: A folder that `convert` wrote; its checkpoint must still be there.
        images: Images to take the first of; None takes one that comes with axcore.
        progress: Where to report.
        registry: The plugins; None finds the installed ones.

    Raises:
        VerificationError: A graph differs by more than the thresholds.
        AxcoreError: Another subclass says what is wrong.
    """
    from .bundle import Bundle
    from .pipeline.verify import verify_bundle

    return verify_bundle(Bundle.open(bundle), images, registry or Registry(), progress or Silent())


def build(
    bundle: Path,
    *,
    toolchain: str | None = None,
    command: str | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> list[Path]:
    """Run a toolchain on a bundle; finished steps are not repeated.

    Args:
        bundle: A folder that `convert` wrote.
        toolchain: Its name; None takes the one the bundle was converted for.
        command: How the tool is called where it is not on PATH, e.g. ``docker run … pulsar2``.
        options: Options of the toolchain (see `Toolchain.options`).
        progress: Told each line the tool prints.
        registry: The plugins; None finds the installed ones.

    Returns:
        The files made.

    Raises:
        ToolchainError: The tool is missing, or a step failed.
    """
    from .bundle import Bundle
    from .files import explained_full_disk
    from .pipeline.decoder import open_decoder
    from .pipeline.workspace import Workspace

    opened, known, reporter = Bundle.open(bundle), registry or Registry(), progress or Silent()
    request, name = opened.build_request, toolchain or opened.manifest["toolchain"]
    tool = known.toolchains.get(name)
    if tool is None:
        installed = ", ".join(known.toolchains) or "none"
        raise UsageError(f"no toolchain `{name}`", hint=f"installed: {installed}")
    chosen = resolve(f"toolchain `{name}`", tool.options, options or {})
    opened.check_files({file for file in opened.files if tool.reads(request, file)})
    with (
        Workspace(opened.folder, request.model).locked(),
        explained_full_disk(opened.folder, "finished steps"),
    ):
        return tool.build(
            opened.folder,
            request,
            reporter,
            command=command,
            options=chosen,
            decoder=lambda: open_decoder(opened, known, reporter),
        )


def load(
    bundle: Path,
    *,
    backend: str = "onnx",
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Runner:
    """Open a bundle whose language model was built, to ask it.

    Args:
        bundle: A folder that `convert` and `build` filled, or that of a board.
        backend: "onnx" runs on this machine what the embedded toolchain built, "axengine" runs
            on a board what Pulsar2 built.
        options: Options of the backend (see `Backend.options`).
        progress: Where to report.
        registry: The plugins; None finds the installed ones.

    Raises:
        AxcoreError: One of its subclasses says what is missing or does not fit.
    """
    from .runtime.runner import Runner

    return Runner.open(
        Path(bundle), registry or Registry(), backend, options, as_progress(progress)
    )


def package(
    bundle: Path,
    out: Path,
    *,
    runtime: Runtime,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Bundle:
    """Lay a built bundle out for a board, in a folder that can be copied there as it is.

    Args:
        bundle: A folder that `convert` and `build` filled.
        out: The new folder. One that was packaged before is replaced.
        runtime: "axllm" for Axera's ``axllm run`` and ``axllm serve``, "python" for the loop that
            `load` runs.
        progress: Where to report.
        registry: The plugins; None finds the installed ones.

    Returns:
        `out`, whose manifest lists its files; a folder for Python can be given to `load`.

    Raises:
        AxcoreError: One of its subclasses says what is missing or does not fit; `out` is as it was.
    """
    from .bundle import Bundle
    from .packaging import package as run

    known = registry or Registry()
    return Bundle.open(run(Path(bundle), Path(out), runtime, known, progress or Silent()))


def quantize(
    model: str,
    out: Path | None = None,
    *,
    bits: int = 4,
    group_size: int = 128,
    device: Device = "cpu",
    text: Path | None = None,
    python: Path | None = None,
    checkpoint: str | None = None,
    weights: Weights | None = None,
    source: Source = "huggingface",
    revision: str | None = None,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Quantised:
    """Write a checkpoint anew with its language model quantised by GPTQ; `convert` takes it.

    Args:
        model: Id, alias or checkpoint folder.
        out: The new folder; None names it after the model, in the working folder.
        bits: Of one weight: 4 or 8.
        group_size: Consecutive inputs that share a scale; -1 for all.
        device: Where gptqmodel computes, "cpu" or "cuda".
        text: File or folder to calibrate with (see `axcore.quantization.text`); None takes a small
            text that comes with axcore.
        python: A Python that has gptqmodel; None takes the running one.
        checkpoint, weights, source, revision: See `plan`.
        progress: Where to report.
        registry: The plugins; None finds the installed ones.

    Returns:
        Sizes, and how the model answers before and after.

    Raises:
        AxcoreError: One of its subclasses says what is wrong; no half-written folder is left.
    """
    from .pipeline.job import Request
    from .quantization.gptq import Settings
    from .quantization.gptq import quantize as run

    request = Request(model, checkpoint, weights, source, revision)
    settings = Settings(bits, group_size, device, text, python)
    return run(request, settings, out, registry or Registry(), progress or Silent())


def lint(target: Path, *, chip: str | None = None) -> list[Finding]:
    """Check an ONNX file, or every graph of a bundle, against a chip's operator table.

    Args:
        target: An ``.onnx`` file or a bundle folder.
        chip: Name of the chip; None takes the bundle's, or AX650 for a file.

    Raises:
        AxcoreError: The target cannot be read, or the chip is unknown.
    """
    from .bundle import Bundle
    from .graph.lint import lint_model

    if not target.is_dir():
        return lint_model(target, chip or Options().chip)
    bundle = Bundle.open(target)
    wanted = chip or bundle.build_request.chip
    return [finding for path in bundle.graphs for finding in lint_model(path, wanted)]


def _request(arguments: dict[str, Any]) -> Request:
    """Return a request from the arguments of `plan` or `convert`."""
    from .pipeline.job import Request

    given = {field.name: arguments[field.name] for field in fields(Request)}
    given["images"] = tuple(Path(path) for path in given["images"])
    given["options"] = given["options"] or Options()
    return Request(**given)
