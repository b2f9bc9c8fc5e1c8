"""The library's verbs, the same that the command line has.

`plan`, `convert` and `quantize` take the fields of a `Request` as keyword arguments, or a whole
`Request` in place of the model. Paths may be strings; ``~`` is the user's home, and one that is
empty or no path at all is a `UsageError`. ``progress=True`` shows bars. Where the system refuses a
file that was named, or the disk is full, its `OSError` passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .paths import given_path
from .plugins import Registry
from .progress import as_progress
from .request import CheckpointRequest, Request, takes

if TYPE_CHECKING:
    from .bundle import Bundle
    from .graph.lint import Finding
    from .graph.verify import Verification
    from .language_model import Prompt
    from .model_card import Entry
    from .packaging import Runtime
    from .pipeline.plan import Plan
    from .progress import Progress
    from .quantization.gptq import Device, Quantised
    from .runtime.runner import Runner

    Reporter = Progress | bool | None
    PathLike = str | Path


def list_models(registry: Registry | None = None) -> list[Entry]:
    """Return the models of every installed family."""
    return (registry or Registry()).entries


@takes(Request)
def plan(
    model: PathLike | Request,
    *,
    out: PathLike | None = None,
    progress: Reporter = None,
    registry: Registry | None = None,
    **arguments: Any,
) -> Plan:
    """Say what `convert` would write, need and run; reads no weight.

    Args:
        model: Id, alias, repository or checkpoint folder; or a whole request.
        out: Where the bundle would go; its disk is checked. None checks nothing.
        progress: Where to report; True shows bars.
        registry: The plugins; None finds the installed ones.
        arguments: Fields of `Request`, and options of the model or the toolchain, e.g. ``chip``.

    Raises:
        UsageError: An argument is unknown, or does not take the value.
        AxcoreError: Another subclass says what is wrong.
    """
    from .calibration import Found, find_archive, find_data
    from .pipeline.job import open_job
    from .pipeline.plan import check_room, make_plan
    from .pipeline.prepared import prepare

    request = Request.of(model, **arguments)
    registry, reporter = registry or Registry(), as_progress(progress)
    job, archived = open_job(request, registry, reporter), request.calibration_archive
    archive = find_archive(archived, reporter) if archived else None
    with job.checkpoint:
        prepared = prepare(request, registry, job, archive)
        made = make_plan(prepared, find_data(request.images) if request.images else Found())
    if out is not None:
        check_room(made, given_path(out))
    return made


@takes(Request)
def convert(
    model: PathLike | Request,
    out: PathLike,
    *,
    progress: Reporter = None,
    registry: Registry | None = None,
    **arguments: Any,
) -> Bundle:
    """Fill `out` with everything a board build needs.

    Run again it continues: finished steps are kept. `out` changes only after every step has
    succeeded.

    Args:
        model: Id, alias, repository or checkpoint folder; or a whole request.
        out: The bundle folder.
        progress: Where to report; True shows bars.
        registry: The plugins; None finds the installed ones.
        arguments: Fields of `Request`, and options of the model or the toolchain, e.g. ``chip``.

    Raises:
        UsageError: An argument is unknown, or does not take the value.
        AxcoreError: Another subclass says what is wrong.
    """
    from .pipeline.convert import convert as run

    request = Request.of(model, **arguments)
    return run(request, given_path(out), registry or Registry(), as_progress(progress))


def verify(
    bundle: PathLike,
    *,
    images: PathLike | Sequence[PathLike] = (),
    progress: Reporter = None,
    registry: Registry | None = None,
) -> list[Verification]:
    """Compare a bundle's graphs with PyTorch on one image.

    Args:
        bundle: A folder that `convert` wrote; its checkpoint must still be there.
        images: Images to take the first of; none takes one that comes with axcore.
        progress: Where to report; True shows bars.
        registry: The plugins; None finds the installed ones.

    Raises:
        VerificationError: A graph differs by more than the thresholds.
        AxcoreError: Another subclass says what is wrong.
    """
    from .bundle import Bundle
    from .pipeline.verify import verify_bundle

    sources = [images] if isinstance(images, (str, Path)) else images
    return verify_bundle(
        Bundle.open(given_path(bundle)),
        [*map(given_path, sources)],
        registry or Registry(),
        as_progress(progress),
    )


def build(
    bundle: PathLike,
    *,
    toolchain: str | None = None,
    command: str | None = None,
    options: Mapping[str, str] | None = None,
    progress: Reporter = None,
    registry: Registry | None = None,
) -> list[Path]:
    """Run a toolchain on a bundle; finished steps are not repeated.

    Args:
        bundle: A folder that `convert` wrote.
        toolchain: Its name; None takes the one the bundle was converted for.
        command: How the tool is called where it is not on PATH, e.g. ``docker run … pulsar2``.
        options: Options of the toolchain (see `Toolchain.options`).
        progress: Told each line the tool prints; True shows bars.
        registry: The plugins; None finds the installed ones.

    Returns:
        The files made.

    Raises:
        ToolchainError: The tool is missing, or a step failed.
        AxcoreError: Another subclass says what is wrong.
    """
    from .bundle import Bundle
    from .pipeline.build import build_bundle

    return build_bundle(
        Bundle.open(given_path(bundle)),
        toolchain,
        command,
        options or {},
        registry or Registry(),
        as_progress(progress),
    )


def load(
    bundle: PathLike,
    *,
    backend: str = "onnx",
    options: Mapping[str, str] | None = None,
    progress: Reporter = None,
    registry: Registry | None = None,
    keep_vision: bool = False,
    ahead: Prompt | None = None,
) -> Runner:
    """Open a bundle whose language model was built, to ask it.

    Args:
        bundle: A folder that `convert` and `build` filled, or that of a board.
        backend: "onnx" runs on this machine what the embedded toolchain built, "axengine" runs
            on a board what Pulsar2 built.
        options: Options of the backend (see `Backend.options`).
        progress: Where to report; True shows bars.
        registry: The plugins; None finds the installed ones.
        keep_vision: Whether the vision side stays in memory behind a prompt's images; else it is
            opened again for new ones.
        ahead: A prompt whose images are run before the language model is loaded, which takes less
            memory.

    Raises:
        AxcoreError: One of its subclasses says what is missing or does not fit.
    """
    from .runtime.runner import Runner

    return Runner.open(
        given_path(bundle),
        registry or Registry(),
        backend,
        options,
        as_progress(progress),
        keep_vision=keep_vision,
        ahead=ahead,
    )


def package(
    bundle: PathLike,
    out: PathLike,
    *,
    runtime: Runtime,
    accept_faults: bool = False,
    progress: Reporter = None,
    registry: Registry | None = None,
) -> Bundle:
    """Lay a built bundle out for a board, in a folder that can be copied there as it is.

    Args:
        bundle: A folder that `convert` and `build` filled.
        out: The new folder. One that was packaged before is replaced.
        runtime: "axllm" for Axera's ``axllm run`` and ``axllm serve``, "python" for the loop that
            `load` runs.
        accept_faults: Whether results of the build that do not hold are warned of, not refused.
        progress: Where to report; True shows bars.
        registry: The plugins; None finds the installed ones.

    Returns:
        `out`, whose manifest lists its files; a folder for Python can be given to `load`.

    Raises:
        AxcoreError: One of its subclasses says what is missing or does not fit; `out` is as it was.
    """
    from .bundle import Bundle
    from .packaging import package as run

    folder, target = given_path(bundle), given_path(out)
    plugins, reporter = registry or Registry(), as_progress(progress)
    made = run(folder, target, runtime, plugins, reporter, accept_faults=accept_faults)
    return Bundle.open(made)


@takes(CheckpointRequest)
def quantize(
    model: PathLike | CheckpointRequest,
    out: PathLike | None = None,
    *,
    bits: int = 4,
    group_size: int = 128,
    device: Device = "cpu",
    text: PathLike | None = None,
    python: PathLike | None = None,
    progress: Reporter = None,
    registry: Registry | None = None,
    **arguments: Any,
) -> Quantised:
    """Write a checkpoint anew with its language model quantised by GPTQ; `convert` takes it.

    Args:
        model: Id, alias, repository or checkpoint folder; or a whole request.
        out: The new folder; None names it after the model, in the working folder.
        bits: Of one weight: 4 or 8.
        group_size: Consecutive inputs that share a scale; -1 for all.
        device: Where gptqmodel computes, "cpu" or "cuda".
        text: File or folder to calibrate with (see `axcore.quantization.text`); None takes a small
            text that comes with axcore.
        python: A Python that has gptqmodel; None takes the running one.
        progress: Where to report; True shows bars.
        registry: The plugins; None finds the installed ones.
        arguments: Fields of `CheckpointRequest`.

    Returns:
        Sizes, and how the model answers before and after.

    Raises:
        AxcoreError: One of its subclasses says what is wrong; no half-written folder is left.
    """
    from .quantization.gptq import Settings
    from .quantization.gptq import quantize as run

    request = Request(**vars(CheckpointRequest.of(model, **arguments)))
    given = [None if path is None else given_path(path) for path in (text, python, out)]
    settings = Settings(bits, group_size, device, given[0], given[1])
    return run(request, settings, given[2], registry or Registry(), as_progress(progress))


def lint(
    target: PathLike,
    *,
    toolchain: str | None = None,
    options: Mapping[str, str] | None = None,
    registry: Registry | None = None,
) -> list[Finding]:
    """Check an ONNX file, or every graph of a bundle, against an operator table.

    Args:
        target: An ``.onnx`` file or a bundle folder.
        toolchain: Whose table; None takes the bundle's, or Pulsar2's for a file.
        options: Options of the toolchain, such as ``{"chip": "AX620E"}``; those of the bundle hold
            where none is given.
        registry: The plugins; None finds the installed ones.

    Raises:
        UsageError: There is no such target, or no operator table of it.
        AxcoreError: Another subclass says why the file or bundle cannot be read.
    """
    from .pipeline.lint import lint_target

    return lint_target(given_path(target), toolchain, options or {}, registry or Registry())
