"""Peak memory of this process, on the host and on an accelerator, and out-of-memory errors."""

from __future__ import annotations

import re
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESS = Path("/proc/self")
_DEVICES = ("cuda", "npu")  # of torch
# What allocators of torch and ONNX Runtime say in exceptions that also tell of anything else.
_RAN_OUT = re.compile(
    r"out of memory|bad_alloc|(can't|cannot|failed to) allocate memory", re.IGNORECASE
)


class PeakMemory:
    """Measures peak memory from its creation on.

    The peak on the host is known on Linux alone, which lets it be reset.
    """

    def __init__(self) -> None:
        self._resettable = _reset_host()
        for device in _devices():
            device.reset_peak_memory_stats()

    @property
    def host_bytes(self) -> int | None:
        """Resident memory at its highest."""
        if not self._resettable:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text())
        return int(found[1]) * 1024 if found else None

    @property
    def device_bytes(self) -> int | None:
        """Memory of torch's tensors at its highest; None where no accelerator is in use."""
        peaks = [int(device.max_memory_allocated()) for device in _devices()]
        return max(peaks, default=None)


def _reset_host() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _devices() -> list[Any]:
    """Return torch's modules of the accelerators in use by this process."""
    torch = sys.modules.get("torch")
    found = [getattr(torch, name, None) for name in _DEVICES]
    return [device for device in found if device is not None and device.is_initialized()]


@contextmanager
def explained_memory(fact: str, hint: str) -> Iterator[None]:
    """Turn a failed allocation into a `BudgetError`; other exceptions pass through.

    Raises:
        BudgetError: With the fact and the allocator's message.
    """
    try:
        yield
    except Exception as error:
        if not _ran_out(error):
            raise
        # What the failed call held may be more than there is left.
        traceback.clear_frames(error.__traceback__)
        said = str(error).partition("\n")[0] or type(error).__name__
        raise BudgetError(f"{fact}\n  {said}", hint=hint) from error


def _ran_out(error: Exception) -> bool:
    kinds = (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))
    return isinstance(error, kinds) or _RAN_OUT.search(str(error)) is not None
