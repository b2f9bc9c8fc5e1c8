"""Export the vision side of a checkpoint folder, and nothing else; print seconds by phase."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axcore import Options, Registry, Silent
from axcore.graph.export import export_component, torch_dtype
from axcore.graph.stitch import Tracer
from axcore.pipeline.job import open_job
from axcore.pipeline.prepared import Prepared, prepare
from axcore.progress import Task
from axcore.request import Request


class Stopwatch(Silent):
    """Adds up the seconds of tasks, by the first word of their label."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[Task]:
        """Time the block."""
        started = time.perf_counter()
        with super().task(label, total, unit) as task:
            yield task
        name = label.split()[0]
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - started


def tracer(prepared: Prepared, plain: bool) -> Tracer:
    """Return the tracer of a conversion, or one that leaves attention as the family wrote it."""
    if not plain:
        return prepared.tracer()
    options = prepared.job.options
    return Tracer(lambda stage: stage, torch_dtype(options.dtype), options.opset)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint")
parser.add_argument("out", type=Path)
parser.add_argument("--plain-attention", action="store_true", help="skip `patch_attention`")
arguments = parser.parse_args()

watch, registry = Stopwatch(), Registry()
request = Request.of(arguments.checkpoint, options=Options(), verify=False, vision_only=True)
job = open_job(request, registry, watch)
files = []
with job.checkpoint:
    prepared = prepare(request, registry, job)
    traced = tracer(prepared, arguments.plain_attention)
    for component, cuts in zip(prepared.components, prepared.cuts, strict=True):
        files += export_component(
            component,
            job.checkpoint,
            traced,
            arguments.out,
            dtype=job.options.dtype,
            cuts=cuts,
            progress=watch,
        )
print(json.dumps({"seconds": watch.seconds, "files": [str(path) for path in files]}))
