"""Versions of code and tools, which a result depends on besides its inputs."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

TOOLS = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxslim", "onnxruntime", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that affects a result."""
    found = {"python": platform.python_version(), "axcore": version_of("axcore")}
    return found | {name: version_of(name) for name in TOOLS}


@cache
def code_digest(module: str) -> str:
    """Return the sha256 of the source files of an installed package that can affect a result.

    Args:
        module: Import name of a package or of a single module; "" is returned if not found.
    """
    # A version number does not change with every edit of an editable installation.
    spec = find_spec(module)
    digest = hashlib.sha256()
    if spec is None or spec.origin is None:
        return ""
    single = spec.submodule_search_locations is None
    root = Path(spec.origin) if single else Path(spec.origin).parent
    paths = [root] if single else sorted((*root.rglob("*.py"), *root.rglob("*.json")))
    for path in paths:
        name = path.name if single else path.relative_to(root).as_posix()
        if not name.startswith(("tests/", "build/", "cli/", "testing/")):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def version_of(name: str) -> str:
    """Return the version of an installed distribution; empty if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
