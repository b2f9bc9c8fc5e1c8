"""The conformance test: one call checks a family against the plugin contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import convert
from ..errors import ContractError
from ..pipeline.job import open_job
from ..pipeline.prepared import Prepared, prepare
from ..plugins import Registry
from ..progress import Silent
from ..request import Options, Request
from .prompts import check_prompt
from .stages import run_stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from ..bundle import Bundle
    from ..component import Component, Port
    from ..model_card import ModelCard

    State = tuple[Tensor, ...]

TOLERANCE = 1e-4
"""Relative and absolute tolerance between two forms of one computation in float32."""


def check_family(
    family: str,
    *,
    out: Path,
    model: str | None = None,
    registry: Registry | None = None,
    data: Sequence[Path] = (),
) -> None:
    """Check that a family keeps the contract, in every task of one of its models.

    The rules: ports, keys and tensors agree; patching twice equals patching once; the patched chain
    computes what the plain one does; the ONNX graph computes what PyTorch does; the parts of
    `split_graph`, run in order, equal the whole; every operator is listed for the chip; nothing is
    written outside the bundle; prompts are prepared without PyTorch. The card needs `tensors`, so
    that a checkpoint can be fabricated.

    Args:
        family: The plugin's entry-point name.
        out: An empty folder, for the checkpoint and the bundles.
        model: Id of the model; None takes the family's first.
        registry: The plugins; None finds the installed ones.
        data: Arrays to calibrate with, for components that take no images.

    Raises:
        AssertionError: A rule is broken; the message names the task and, if any, the stage.
        AxcoreError: The conversion itself fails.
    """
    from ..checkpoint import fabricate

    registry = registry or Registry()
    card = _card(registry, family, model)
    checkpoint = fabricate(card, "tiny", out / "checkpoint")
    for task in card.profiles:
        _check_task(registry, card, task, checkpoint, out / task, data)


def _card(registry: Registry, family: str, model: str | None) -> ModelCard:
    cards = [entry.card for entry in registry.entries if entry.family == family]
    for problem in registry.problems:
        if problem.plugin.name == family:
            raise ContractError(f"plugin {problem.plugin} was set aside: {problem.error}")
    fitting = [card for card in cards if model in (None, card.id)]
    if not fitting:
        raise ContractError(
            f"family `{family}` has no model `{model or 'at all'}`",
            hint=f"its models: {', '.join(card.id for card in cards) or 'none'}",
        )
    return fitting[0]


def _check_task(
    registry: Registry,
    card: ModelCard,
    task: str,
    checkpoint: Path,
    out: Path,
    data: Sequence[Path],
) -> None:
    whole = _prepared(registry, card, checkpoint, Options(task=task))
    with whole.job.checkpoint:
        for component in whole.components:
            _check_patching(whole, component)
    stages = min(len(component.stages) for component in whole.components)
    cut = _prepared(registry, card, checkpoint, Options(task=task, split=min(2, stages)))
    out.mkdir(parents=True, exist_ok=True)
    before = _contents(checkpoint, out, Path.cwd())
    bundles = [
        _convert(prepared, out / name, data)
        for prepared, name in ((whole, "whole"), (cut, "parts"))
    ]
    _check_untouched(before, _contents(checkpoint, out, Path.cwd()), task)
    _check_listed(bundles[0], task)
    _check_parts(whole, cut, bundles, task)
    if card.published.tokens:  # else the checkpoint has no tokenizer
        check_prompt(bundles[0].folder, registry)


def _prepared(registry: Registry, card: ModelCard, checkpoint: Path, options: Options) -> Prepared:
    """Run the hooks that describe the model; `prepare` checks what they return."""
    request = Request.of(card.id, checkpoint=checkpoint, options=options)
    return prepare(request, registry, open_job(request, registry, Silent()))


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
