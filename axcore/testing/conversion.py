"""Laws of conversions: stages, patching, graphs, parts, and what is written where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import convert
from ..request import Options
from .stages import run_stages
from .trial import Law

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from ..bundle import Bundle
    from ..component import Component, Port
    from ..pipeline.prepared import Prepared
    from .trial import Trial

    State = tuple[Tensor, ...]

TOLERANCE = 1e-4
"""Relative and absolute tolerance between two forms of one computation in float32."""


def _describes(trial: Trial) -> None:
    """Ports, keys, tensors and cuts agree, in every task."""
    for task in trial.tasks:
        whole = trial.prepared(Options(task=task))
        stages = min(len(component.stages) for component in whole.components)
        options = Options(task=task, split=min(2, stages))
        trial.keep(f"whole {task}", whole)
        trial.keep(f"cut {task}", trial.prepared(options))


def _patches(trial: Trial) -> None:
    for whole in _each(trial, "whole"):
        for component in whole.components:
            _check_patching(whole, component)


def _converts(trial: Trial) -> None:
    """Graphs equal PyTorch (`convert` verifies), and nothing lies where it should not."""
    for whole, cut in zip(_each(trial, "whole"), _each(trial, "cut"), strict=True):
        task = whole.job.task
        out, checkpoint = trial.out / task, whole.job.checkpoint.folder
        out.mkdir(parents=True, exist_ok=True)
        before = _contents(checkpoint, out, Path.cwd())
        bundles = [
            _convert(prepared, out / name, trial.data)
            for prepared, name in ((whole, "whole"), (cut, "parts"))
        ]
        trial.keep(f"bundles {task}", bundles)
        _check_untouched(before, _contents(checkpoint, out, Path.cwd()), task)


def _lints(trial: Trial) -> None:
    for task, bundles in _bundles(trial):
        _check_listed(bundles[0], task)


def _recomposes(trial: Trial) -> None:
    for task, bundles in _bundles(trial):
        whole, cut = (trial.kept(f"{name} {task}") for name in ("whole", "cut"))
        _check_parts(whole, cut, bundles, task)


def _each(trial: Trial, name: str) -> list[Prepared]:
    return [trial.kept(f"{name} {task}") for task in trial.tasks]


def _bundles(trial: Trial) -> list[tuple[str, list[Bundle]]]:
    return [(task, trial.kept(f"bundles {task}")) for task in trial.tasks]


DESCRIBES = Law("components, keys, tensors and cuts agree", _describes)
CONVERTS = Law(
    "it converts, graphs equal PyTorch, and nothing is written outside the bundle",
    _converts,
    (DESCRIBES.name,),
)
LAWS = (
    DESCRIBES,
    Law("patched stages compute what plain ones do", _patches, (DESCRIBES.name,)),
    CONVERTS,
    Law("the chip has every operator", _lints, (CONVERTS.name,)),
    Law("the parts of a graph compute what the whole does", _recomposes, (CONVERTS.name,)),
)


# Patching ----------------------------------------------------------------------------------------


def _check_patching(prepared: Prepared, component: Component) -> None:
    """Run the plain chain and compare each patched stage with it."""
    job, tracer = prepared.job, prepared.tracer()
    state = tuple(_random(port) for port in component.inputs)
    for stage in component.stages:
        where = f"task `{job.task}`, stage `{stage.name}`"
        once = tracer.patched(stage)
        twice = prepared.registry.call(job.family, "patch_attention", job=job, stage=once)
        plain, patched, again = (  # the patched module is that of any stage of the kind
            run_stages([replace(stage, module=form.module)], job.checkpoint.tensor, *state)
            for form in (stage, once, twice)
        )
        _check_close(patched, plain, f"{where}: the patched stage computes something else")
        _check_close(again, patched, f"{where}: patching twice differs from patching once")
        state = plain


def _random(port: Port) -> Tensor:
    import torch

    if port.dtype != "float32":
        return torch.zeros(port.shape, dtype=getattr(torch, port.dtype))
    return torch.randn(port.shape, generator=torch.Generator().manual_seed(0))


def _check_close(made: Sequence[Any], expected: Sequence[Any], broken: str) -> None:
    """Compare arrays or tensors; a failure says by how much they differ."""
    import torch

    try:
        for one, other in zip(made, expected, strict=True):
            torch.testing.assert_close(
                torch.as_tensor(one), torch.as_tensor(other), atol=TOLERANCE, rtol=TOLERANCE
            )
    except (AssertionError, ValueError) as error:
        raise AssertionError(f"{broken}\n  {error}") from error


# Bundles -----------------------------------------------------------------------------------------


def _convert(prepared: Prepared, out: Path, data: Sequence[Path]) -> Bundle:
    from ..calibration import embedded_images

    return convert(
        prepared.job.card.id,
        out,
        checkpoint=str(prepared.job.checkpoint.folder),
        images=[*embedded_images(), *data],
        options=prepared.job.options,
        verify=not any(prepared.cuts),  # parts are compared with the whole
        family=prepared.job.family,
        registry=prepared.registry,
    )


def _contents(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of the files directly in `folders`."""
    # Not their content: a checkpoint is large, and writing a file changes its time.
    files = (path for folder in folders for path in folder.iterdir() if path.is_file())
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def _check_untouched(before: dict[Path, Any], after: dict[Path, Any], task: str) -> None:
    changed = sorted(str(path) for path, _ in before.items() ^ after.items())
    assert not changed, f"task `{task}`: written outside the bundle: {', '.join(changed)}"


def _check_listed(bundle: Bundle, task: str) -> None:
    findings = [f for component in bundle.manifest.components for f in component.findings or ()]
    lines = "".join("\n  {node} ({op}): {constraint}; {remedy}".format(**f) for f in findings)
    assert not findings, f"task `{task}`: the chip's table does not list{lines}"


def _check_parts(whole: Prepared, cut: Prepared, bundles: Sequence[Bundle], task: str) -> None:
    expected, made = (
        list(_results(prepared, bundle))
        for prepared, bundle in zip((whole, cut), bundles, strict=True)
    )
    for component, one, other in zip(whole.components, made, expected, strict=True):
        broken = (
            f"task `{task}`: the parts of `{component.name}` do not compute what the whole does"
        )
        _check_close(one, other, broken)


def _results(prepared: Prepared, bundle: Bundle) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yield the output of each component's files, run in order on an image."""
    import onnxruntime as ort

    from ..calibration import Found
    from ..pipeline.flow import Flow

    flow = Flow(prepared, lambda _, graph: bundle.folder / f"{graph.stem}.onnx")
    owners = [component for component, _ in flow.chain]
    for component in prepared.components:
        last = len(owners) - 1 - owners[::-1].index(component)
        feed = next(flow.feeds(last, flow.chosen(Found())))
        session = ort.InferenceSession(flow.path(last), providers=["CPUExecutionProvider"])
        yield session.run(None, dict(feed))
