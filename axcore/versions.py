"""What a result depends on besides its inputs: code and tool versions."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

TOOLS = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxslim", "onnxruntime", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that shapes a result."""
    found = {"python": platform.python_version(), "axcore": _version("axcore")}
    return found | {name: _version(name) for name in TOOLS}


@cache
def code_digest(module: str) -> str:
    """Return the sha256 over the sources of an installed package that can shape a result.

    A version number alone would not tell two states of an editable installation apart.
    """
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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
