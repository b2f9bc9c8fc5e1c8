"""Run another program as a child process that never outlives this one."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_GRACE_S = 10  # between SIGTERM and SIGKILL: a container needs time to stop its processes


@contextmanager
def child(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    stderr: int | IO[str] = subprocess.STDOUT,
) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a new process group; if the block raises, stop the whole group.

    Args:
        words: The program and its arguments.
        folder: The working directory.
        environment: Variables added to, or replacing, those of this process.
        stderr: As for `subprocess.Popen`; merged into standard output, a pipe, by default.
    """
    with (
        _signals_raise(),
        subprocess.Popen(
            words,
            cwd=folder,
            # Python buffers what it writes to a pipe; progress should appear line by line.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            # Vendor tools start processes of their own; a group can be stopped as one. Ctrl-C in
            # the terminal then reaches only this process, which stops the group.
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        except BaseException:
            _stop(process)
            raise


def ending(code: int) -> str:
    """Describe an exit code: ``exited with 3``, ``was killed by SIGKILL``."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def short_of_memory(code: int) -> bool:
    """Whether an exit code is the one left by the kernel's out-of-memory killer."""
    # Behind a shell or a container, a process killed by signal n exits with 128 + n.
    return code in (-signal.SIGKILL, 128 + signal.SIGKILL)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `SystemExit`, so that the child is stopped too.

    Signals with a handler, or ignored (``nohup``), are left alone.
    """
    ours: list[signal.Signals] = []
    # Python installs signal handlers in the main thread only.
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
        # Also when the program itself has ended: its own children may still be running.
        _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # the whole group has ended
