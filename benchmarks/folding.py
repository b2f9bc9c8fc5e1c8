"""Write the language model of a checkpoint folder as its family asks; print seconds and bytes."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from axcore import Options, Registry, Silent
from axcore.language.checkpoint import write_checkpoint
from axcore.pipeline.job import open_job
from axcore.request import Request

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint")
parser.add_argument("out", type=Path, help="folder that does not exist")
arguments, options = parser.parse_known_args()

registry = Registry()
choices = {name.removeprefix("--"): "yes" for name in options}
job = open_job(
    Request.of(arguments.checkpoint, options=Options(choices=choices)), registry, Silent()
)
with job.checkpoint:
    wanted = registry.call(job.family, "llm_build_args", job=job).checkpoint
    started = time.perf_counter()
    write_checkpoint(job.checkpoint, wanted, arguments.out, Silent())
    seconds = time.perf_counter() - started
count = sum(path.stat().st_size for path in arguments.out.glob("*.safetensors"))
print(json.dumps({"seconds": seconds, "bytes": count}))
