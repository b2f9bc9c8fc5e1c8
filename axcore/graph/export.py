"""Export a component to ONNX files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.checker
import onnx_ir as ir
import torch

from .stitch import Tracer, stitch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..checkpoint import Checkpoint
    from ..component import Component, GraphDType
    from ..progress import Progress

_IN_FLIGHT_BYTES = 96 << 20  # limit on tensors in memory, read but not yet written
_INLINE_BYTES = 256  # tensors up to this size are stored in the graph's own file
_WRITERS = 2  # one reads and casts while the other writes


def torch_dtype(name: GraphDType) -> torch.dtype:
    """Return torch's dtype of a graph precision."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def part_stems(component: Component, cuts: Sequence[int]) -> list[str]:
    """Return the file names, without suffix, of the parts between `cuts`."""
    if not cuts:
        return [component.stem]
    return [f"{component.stem}_part{number}" for number in range(1, len(cuts) + 2)]


def export_component(
    component: Component,
    checkpoint: Checkpoint,
    tracer: Tracer,
    folder: Path,
    *,
    dtype: GraphDType,
    cuts: Sequence[int],
    progress: Progress,
) -> list[Path]:
    """Trace, stitch and save a component; each weight is read, cast, written and dropped.

    Args:
        component: Checked by `check_component`.
        checkpoint: Where weights are read from, while saving.
        folder: Where the files go; overwritten if they exist.
        cuts: Where new parts begin.

    Returns:
        The files in the order data flows, each accepted by `onnx.checker`.
    """
    with progress.task(f"trace {component.name}", len(component.stages), "stages") as task:
        models = stitch(
            component,
            tracer,
            lambda weight: weight.resolve(checkpoint.tensor),
            torch_dtype(dtype),
            cuts,
            task,
        )
    paths = []
    for stem, model in zip(part_stems(component, cuts), models, strict=True):
        path = folder / f"{stem}.onnx"
        save(model, path, progress)
        onnx.checker.check_model(str(path), full_check=True)
        paths.append(path)
    return paths


def save(model: ir.Model, path: Path, progress: Progress) -> None:
    """Write `model` and its weights, materialising only a few tensors at a time."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    sizes = [tensor.nbytes for tensor in tensors if tensor is not None]
    total = sum(size for size in sizes if size > _INLINE_BYTES)
    with progress.task(f"write {path.name}", total, "B") as task:
        ir.save(
            model,
            path,
            external_data=f"{path.name}.data",
            size_threshold_bytes=_INLINE_BYTES,
            callback=lambda tensor, _: task.advance(tensor.nbytes),
            max_workers=_WRITERS,
            max_in_flight_bytes=_IN_FLIGHT_BYTES,
        )
