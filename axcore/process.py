"""Run another program as a child process that never outlives this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .supervisor import NUMBER_BYTES

GRACE_S = 10.0
"""Between SIGTERM and SIGKILL: a container needs time to stop its processes."""

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class Child(subprocess.Popen[bytes]):
    """A process that watches over a program: it has its output and its exit code.

    Attributes:
        link: The socket to it.
    """

    link: socket.socket

    def peak_bytes(self) -> int:
        """Wait for the end, and return the most memory that one process of the program had.

        0 where that is not known. What a container's daemon starts is not among them.
        """
        self.wait()
        try:
            return int(self.link.recv(NUMBER_BYTES, socket.MSG_WAITALL) or 0)
        except OSError:
            return 0


@contextmanager
def child(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    stderr: int | IO[str] = subprocess.STDOUT,
    *,
    held: Sequence[int] = (),
    grace_s: float = GRACE_S,
) -> Iterator[Child]:
    """Start a program in a new process group, which is stopped if the block raises.

    The group is also stopped if this process is killed, and when the program has ended but has
    left processes behind: each time by SIGTERM and, `grace_s` later, by SIGKILL.

    Args:
        words: The program, as a path, and its arguments.
        folder: The working directory.
        environment: Variables added to, or replacing, those of this process.
        stderr: As for `subprocess.Popen`; merged into standard output, a pipe, by default.
        held: File descriptors that stay open, here or not, until the group has ended: locks.
        grace_s: For an orderly end.

    Yields:
        The process that watches over the program.

    Raises:
        OSError: It cannot be started.
    """
    ours, theirs = socket.socketpair()
    # Python buffers what it writes to a pipe; progress should appear line by line.
    variables = [f"{k}={v}" for k, v in {"PYTHONUNBUFFERED": "1", **environment}.items()]
    descriptors = (theirs.fileno(), *held)
    with (
        ours,
        theirs,
        _signals_raise(),
        Child(
            [
                *(sys.executable, "-I", "-S", str(_SUPERVISOR)),
                *(",".join(map(str, descriptors)), str(grace_s)),
                *(str(len(variables)), *variables, *words),
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=descriptors,
            # Vendor tools start processes of their own; a group can be stopped as one. Ctrl-C in
            # the terminal then reaches only this process, which stops the group.
            start_new_session=True,
        ) as process,
    ):
        try:
            theirs.close()
            process.link = ours
            _check_started(ours.recv(NUMBER_BYTES, socket.MSG_WAITALL), words[0])
            yield process
        except BaseException:
            _stop(process, ours)
            raise


def output_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """Return the standard output of a `child`."""
    assert process.stdout is not None, "it is always a pipe"
    return process.stdout


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


def _check_started(told: bytes, program: str) -> None:
    """Raise what starting the program raised."""
    if not told:
        raise ChildProcessError(f"{_SUPERVISOR.name} ended before it started {program}")
    if number := int(told):
        raise OSError(number, os.strerror(number), program)


def _stop(process: subprocess.Popen[bytes], link: socket.socket) -> None:
    link.close()
    try:
        process.wait()
    except BaseException:
        process.terminate()  # interrupted again: without grace
        raise
