"""Verify a bundle after the fact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..calibration import find_pictures
from .flow import Flow
from .job import Request, open_job
from .prepared import prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..graph.verify import Verification
    from ..plugins import Registry
    from ..progress import Progress
    from .bundle import Bundle


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
    manifest = bundle.manifest
    request = Request(
        model=manifest["model"]["id"],
        checkpoint=manifest["checkpoint"]["folder"],
        options=bundle.options,
        vision_only=manifest["vision_only"],
        toolchain=manifest["toolchain"],
    )
    job = open_job(request, registry, progress)
    with job.checkpoint:
        prepared = prepare(request, registry, job)
        flow = Flow(prepared, lambda _, graph: bundle.folder / f"{graph.stem}.onnx")
        tracer, pictures = prepared.tracer(), find_pictures(images) if images else []
        return [flow.verify(c, pictures, tracer, progress) for c in prepared.components]
