"""Let torch's exporter read its library of operators once in a process.

For every graph it parses the source of some 500 functions, which takes longer than tracing a stage.
"""

from __future__ import annotations

import inspect
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.RLock()
_read: dict[int, Any] = {}


@contextmanager
def read_once() -> Iterator[None]:
    """While active, the library for an operator set that was read before is not read again.

    There is no public way to hand the exporter a library. Where this torch keeps it elsewhere, or
    reads it by other arguments, it reads it each time. Exports of others outside of the block,
    which may add operators of their own to the library, get a fresh one as ever.
    """
    registry = _registry()
    if registry is None:
        yield
        return
    with _lock:
        original = registry.__dict__["from_torchlib"]

        def from_torchlib(cls: Any, opset_version: int) -> Any:
            if opset_version not in _read:
                _read[opset_version] = original.__get__(None, cls)(opset_version=opset_version)
            return _read[opset_version]

        registry.from_torchlib = classmethod(from_torchlib)
        try:
            yield
        finally:
            registry.from_torchlib = original


def _registry() -> Any:
    """Return the class that reads the library; None where it is not as it is known."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        reader: Any = ONNXRegistry.__dict__["from_torchlib"]
        parameters = inspect.signature(reader.__func__).parameters
    except (ImportError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return ONNXRegistry if [*parameters] == ["cls", "opset_version"] else None
