"""What matters on a machine with a card, looked at without loading any of it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

from axcore import Availability

from .environment import environment

REMEDIES = {
    "ais_bench": "install the ais_bench and aclruntime wheels to run .om files",
    "onnxruntime-cann": "install it into an environment of its own, without onnxruntime, to run "
    ".onnx files on the card",
    "torch-npu": "install the one of your torch's minor version to run language models on the card",
}


def checks() -> dict[str, Availability]:
    """Return packages and environment variables by name, each with what would make it available."""
    return {
        **{name: _package(name, remedy) for name, remedy in REMEDIES.items()},
        **{name: _variable(name, value) for name, value in environment("run").items()},
    }


def _package(name: str, remedy: str) -> Availability:
    try:
        return Availability(True, version(name))
    except PackageNotFoundError:
        return Availability(False, "not installed", remedy)


def _variable(name: str, value: str) -> Availability:
    own = os.environ.get(name)
    return Availability(True, f"{value}, set for runs" if own is None else f"{own}, from outside")
