"""Time ONNX files of one interface under ONNX Runtime, in turns; print the median seconds."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("files", type=Path, nargs="+")
parser.add_argument("--runs", type=int, default=5)
arguments = parser.parse_args()

sessions = [ort.InferenceSession(path) for path in arguments.files]
random = np.random.default_rng(0)
feed = {
    entry.name: random.standard_normal(entry.shape, np.float32)
    for entry in sessions[0].get_inputs()
}
seconds: list[list[float]] = [[] for _ in sessions]
for _ in range(1 + arguments.runs):
    for session, measured in zip(sessions, seconds, strict=True):
        started = time.perf_counter()
        session.run(None, feed)
        measured.append(time.perf_counter() - started)
# The first round warms up: memory is allocated then.
print(json.dumps([statistics.median(measured[1:]) for measured in seconds]))
