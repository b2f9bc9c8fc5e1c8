"""Extract the token embedding of a checkpoint folder; print the seconds that took."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from axcore import Registry, Silent
from axcore.language.embedding import write_embedding
from axcore.pipeline.job import open_job
from axcore.request import Request

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint")
parser.add_argument("out", type=Path, help="folder")
arguments = parser.parse_args()

registry = Registry()
job = open_job(Request.of(arguments.checkpoint), registry, Silent())
with job.checkpoint:
    embedding = registry.call(job.family, "embed_extract", job=job)
    started = time.perf_counter()
    files = write_embedding(job.checkpoint, embedding, arguments.out, (), Silent())
    seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "file": str(files[0])}))
