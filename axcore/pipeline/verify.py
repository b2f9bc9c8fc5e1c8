"""Verify a bundle after the fact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..calibration import Found, find_data
from .flow import Flow
from .job import open_job, request_of
from .prepared import prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bundle import Bundle
    from ..graph.verify import Verification
    from ..plugins import Registry
    from ..progress import Progress


def verify_bundle(
    bundle: Bundle, images: Sequence[Path], registry: Registry, progress: Progress
) -> list[Verification]:
    """Compare every component of `bundle` with the checkpoint it was made from.

    Raises:
        BundleError: A graph is missing or was changed.
        VerificationError: A graph differs by more than the thresholds.
    """
    stems = [graph.stem for graph in bundle.build_request.graphs]
    bundle.check_files({f"{stem}{suffix}" for stem in stems for suffix in (".onnx", ".onnx.data")})
    request = request_of(bundle, registry)
    job = open_job(request, registry, progress)
    with job.checkpoint:
        prepared = prepare(request, registry, job)
        flow = Flow(prepared, lambda _, graph: bundle.folder / f"{graph.stem}.onnx")
        shown = find_data(images) if images else Found()
        return [
            flow.verify(component, shown, prepared.tracer(), progress)
            for component in prepared.components
        ]
