"""Calls that depend on the operating system: axcore runs on Linux."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from .errors import AxcoreError


def require_linux() -> None:
    """Refuse other systems before any work: checkpoints are read with calls that only Linux has.

    Raises:
        AxcoreError: This is not Linux.
    """
    if sys.platform != "linux":
        raise AxcoreError(
            f"axcore runs on Linux; this is {sys.platform}",
            hint="use a Linux machine or container, or WSL on Windows",
        )


def require_working_folder() -> None:
    """Refuse a working folder that was removed: relative paths mean nothing, and torch dies in it.

    Raises:
        AxcoreError: It is gone, or may not be looked at.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise AxcoreError(
            f"the working folder cannot be used: {error.strerror}",
            hint="go to another one, e.g. with `cd ~`",
        ) from error


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def trim_memory() -> None:
    """Return freed heap memory to the system, if the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
