"""Build the layer models of a bundle; print the seconds that tracing took."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import axcore
from axcore.toolchains.onnx import build

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", type=Path)
arguments = parser.parse_args()

trace, seconds = vars(build)["trace"], 0.0


def timed(*given: Any, **named: Any) -> Any:
    """Trace, and add up the time."""
    global seconds
    started = time.perf_counter()
    traced = trace(*given, **named)
    seconds += time.perf_counter() - started
    return traced


vars(build)["trace"] = timed
axcore.build(arguments.bundle, toolchain="onnx")
print(json.dumps({"trace": seconds}))
