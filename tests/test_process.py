"""A program ends with the process that wants it, and takes along whatever it has started."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from axcore.process import child, output_of

if TYPE_CHECKING:
    from collections.abc import Callable

SHELL = "/bin/sh"
STARTS = """\
import signal, sys
from pathlib import Path
from axcore.process import child
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
script, folder, grace = sys.argv[1:]
with child(["/bin/sh", "-c", script], Path(folder), {}, grace_s=float(grace)) as process:
    print("started", flush=True)
    process.stdout.read()
"""
STAYS = "sleep 600 & echo $$ $! > pids; wait"
STUBBORN = f"trap '' TERM; {STAYS}; {STAYS}"


def test_what_a_program_leaves_in_the_shape_it_left_it(tmp_path: Path) -> None:
    """Output, variables, exit code and the signal that ended it. Oracle: a shell's words."""
    with child([SHELL, "-c", "echo $KIND; pwd; exit 3"], tmp_path, {"KIND": "a=b"}) as process:
        assert process.stdout is not None
        assert process.stdout.read().decode().split() == ["a=b", str(tmp_path)]
        assert process.wait() == 3
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE):
        with child([SHELL, "-c", f"kill -{number} $$"], tmp_path, {}) as process:
            assert process.wait() == -number


def test_the_memory_of_a_program_is_known_at_its_end(tmp_path: Path) -> None:
    """That of a process it started, too, and not ours. Oracle: bytes that were written."""
    ours = bytearray(256 << 20)
    script = f"{sys.executable} -c 'bytearray(96 << 20)'; true"
    with child([SHELL, "-c", script], tmp_path, {}) as process:
        assert 96 << 20 < process.peak_bytes() < 160 << 20
    assert len(ours) == 256 << 20


@pytest.mark.parametrize(
    ("name", "number"), [("gone", errno.ENOENT), (".", errno.EACCES), ("text", errno.ENOEXEC)]
)
def test_what_cannot_be_started_is_an_error_of_the_system(
    tmp_path: Path, name: str, number: int
) -> None:
    """Oracle: the kernel's error numbers."""
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(OSError, match=name) as caught, child([str(tmp_path / name)], tmp_path, {}):
        pytest.fail("it was started")
    assert caught.value.errno == number


@pytest.mark.parametrize("script", [STAYS, STUBBORN])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
def test_nothing_outlives_us_however_we_end(
    tmp_path: Path, script: str, number: signal.Signals
) -> None:
    """Nor what obeys no SIGTERM. Oracle: the kernel, which no longer knows the processes."""
    started = start(tmp_path, script)
    with started as process:
        process.send_signal(number)
        process.wait(60)
    assert_gone(tmp_path)


def test_a_second_interrupt_grants_no_grace(tmp_path: Path) -> None:
    """Oracle: the kernel, long before the time is over that an orderly end would have."""
    with start(tmp_path, STUBBORN, grace_s=600) as process:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
    assert_gone(tmp_path)


def test_any_number_of_files_may_be_open(tmp_path: Path) -> None:
    """Checkpoints have many shards. Oracle: a shell's word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(1100)]
    try:
        with child([SHELL, "-c", "echo here"], tmp_path, {}) as process:
            assert output_of(process).read() == b"here\n"
            assert process.wait() == 0
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nothing_outlives_the_program_itself(tmp_path: Path) -> None:
    """What it leaves behind would keep its output open for ever. Oracle: the kernel."""
    script = "sleep 600 & echo $$ $! > pids; exit 3"
    with child([SHELL, "-c", script], tmp_path, {}, grace_s=0.2) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.wait() == 3
    assert_gone(tmp_path)


def test_a_lock_is_held_until_the_last_process_has_ended(tmp_path: Path) -> None:
    """A descriptor that is handed over stays open when we are killed. Oracle: a pipe's end."""
    read, write = os.pipe()
    with child([SHELL, "-c", "exec sleep 0.3"], tmp_path, {}, held=[write]) as process:
        os.close(write)
        assert os.read(read, 1) == b""  # the end, and so everybody has closed it
        assert process.wait() == 0
    os.close(read)


def start(folder: Path, script: str, grace_s: float = 0.5) -> subprocess.Popen[str]:
    """Run a shell's script from a process of its own, which can be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS, script, str(folder), str(grace_s)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    wait_until(lambda: len(pids(folder)) == 2)
    return process


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def assert_gone(folder: Path) -> None:
    wait_until(lambda: not any(running(pid) for pid in pids(folder)))


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited a minute in vain")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
