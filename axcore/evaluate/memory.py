"""Peak memory of this process between two moments, on the host and on an accelerator."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")
_DEVICES = ("cuda", "npu")  # of torch


class PeakMemory:
    """Measures from its creation on.

    Linux alone keeps a peak that can be reset; elsewhere there is no figure for the host.
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
    """Return torch's modules of accelerators that this process has used."""
    torch = sys.modules.get("torch")
    found = [getattr(torch, name, None) for name in _DEVICES]
    return [device for device in found if device is not None and device.is_initialized()]
