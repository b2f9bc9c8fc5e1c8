"""What axcore asks of the operating system. It runs on Linux; glibc's calls are not required."""

from __future__ import annotations

import ctypes
import os
import sys

from .errors import AxcoreError


def require_linux() -> None:
    """Refuse other systems before any work: files are read and copied by Linux's own calls.

    Raises:
        AxcoreError: This is not Linux.
    """
    if sys.platform != "linux":
        raise AxcoreError(
            f"axcore runs on Linux; this is {sys.platform}",
            hint="use a Linux machine, a container or, on Windows, WSL",
        )


def cores() -> int:
    """Return the number of cores that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def trim_memory() -> None:
    """Give memory that was freed back to the system, where the C library (glibc) can do so."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
