"""Run a command and measure it from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MODULE = __package__


@dataclass(frozen=True)
class Run:
    """A finished process.

    Attributes:
        seconds: Wall time from start to end.
        peak_bytes: Resident memory of the largest process of its tree, at its highest.
        code: Exit code, or minus the signal that ended it.
        stdout, stderr: What it printed.
    """

    seconds: float
    peak_bytes: int
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Its standard output as data."""
        return json.loads(self.stdout)

    @property
    def failure(self) -> str:
        """Say how it ended where it did not end well; else empty."""
        if self.code == 0:
            return ""
        how = f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        last = (self.stderr.strip() or self.stdout.strip()).splitlines()[-1:] or ["no message"]
        return f"{how} after {self.seconds:.0f} s and {self.peak_bytes / 1e9:.1f} GB: {last[0]}"


def run(*command: str, check: bool = True) -> Run:
    """Run `command` to its end.

    The kernel counts the memory of this process as the child's until the child has called exec,
    so no peak is below what this process takes: it imports nothing heavy.

    Raises:
        RuntimeError: It failed, unless `check` is off; quotes all it printed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    result = Run(seconds, usage.ru_maxrss * 1024, child.returncode, *texts)
    if check and result.code:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}{result.failure}")
    return result


def script(name: str, *arguments: object, check: bool = True) -> Run:
    """Run a script of this folder in a process of its own."""
    return run(sys.executable, "-m", f"{MODULE}.{name}", *map(str, arguments), check=check)


def axcore(*arguments: object, check: bool = True) -> Run:
    """Run the command line."""
    return run(sys.executable, "-m", "axcore", *map(str, arguments), check=check)


def bare_interpreter_bytes() -> int:
    """Return the peak memory of Python doing nothing, as it sees it itself (see `run`)."""
    status = run(sys.executable, "-c", "print(open('/proc/self/status').read())").stdout
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def middle(runs: Sequence[Run]) -> Run:
    """Return the run of median time."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def both(run: Run) -> str:
    """Return time and memory as text."""
    return f"{run.seconds:.1f} s, {run.peak_bytes / 1e9:.2f} GB"


def outcome(run: Run) -> str:
    """Return time and memory, or how it failed."""
    return run.failure or both(run)
