"""Running another program as a child that never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_GRACE_S = 10  # a container needs a moment to stop what runs inside it


@contextmanager
def child(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    stderr: int | IO[str] = subprocess.STDOUT,
) -> Iterator[subprocess.Popen[str]]:
    """Start a process group of its own, and leave nothing of it behind on any way out.

    Args:
        words: The program and its arguments.
        folder: Where it works.
        environment: Laid over our own.
        stderr: Where its standard error goes; to its standard output, which is a pipe, by default.
    """
    with (
        _signals_raise(),
        subprocess.Popen(
            words,
            cwd=folder,
            # A Python program would hold its lines back from a pipe.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        except BaseException:
            _stop(process)
            raise


def ending(code: int) -> str:
    """Say how a process ended: ``exited with 3``, ``was killed by SIGKILL``."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def short_of_memory(code: int) -> bool:
    """Whether a process ended the way the kernel ends those that take too much memory."""
    return code in (-signal.SIGKILL, 128 + signal.SIGKILL)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn signals that would end us at once into `SystemExit`, so that the child is stopped too.

    Signals that somebody handles or ignores (``nohup``) stay as they are.
    """
    ours: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        fatal = (signal.SIGTERM, signal.SIGHUP)
        ours = [number for number in fatal if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _stop(process: subprocess.Popen[str]) -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # nobody is left
