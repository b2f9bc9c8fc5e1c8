"""Progress as people see it: bars, lines, and what the library takes."""

from __future__ import annotations

import ctypes
import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

import axcore
from axcore import system
from axcore.display import Lines
from axcore.progress import Silent, as_progress
from axcore.testing import Recorder

from .bundles import convert, environment

if TYPE_CHECKING:
    from pathlib import Path

BARS = """
from axcore.progress import as_progress
progress = as_progress(True)
with progress.task("load", 3, "files") as task:
    task.advance()
    progress.say("one is loaded: " + "x" * 200)
with progress.task("copy", 2e9, "B"):
    pass
progress.say("done")
"""


def test_bars_show_where_they_begin() -> None:
    """From "0 of 3" on, with whole messages above them. Oracle: what a terminal gets."""
    leader, follower = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", BARS], stderr=follower, check=True,
                       env={**environment(), "TERM": "xterm"})  # fmt: skip
        text = os.read(leader, 100_000).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert text.index("0 of 3 files") < text.index("one is loaded: " + "x" * 200)
    assert "0 B of 2 GB" in text
    assert text.rstrip().endswith("done")


def test_a_log_shows_life(capsys: pytest.CaptureFixture[str]) -> None:
    """A line at the beginning, now and then, and at the end; no line more often than that."""
    for every_s in (0, 3600):
        with Lines(every_s).task("load", 3, "files") as task:
            for _ in range(3):
                task.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["load (3 files) …", "load: 1 of 3 files", "load: 2 of 3 files"]
    assert lines[4] == lines[0]
    assert all(re.fullmatch(r"load: \d+\.\d s", line) for line in (lines[3], *lines[5:]))


def test_what_the_library_takes_as_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """True speaks, False and None are silent, anything else is used as it is."""
    recorder = Recorder()
    assert as_progress(recorder) is recorder
    assert isinstance(as_progress(None), Silent)
    assert isinstance(as_progress(False), Silent)
    assert capsys.readouterr().err == ""
    as_progress(True).warn("be careful")  # pytest's standard error is no terminal
    assert capsys.readouterr().err == "warning: be careful\n"


def test_every_task_gets_to_its_end(checkpoint: Path, tmp_path: Path) -> None:
    """Of all verbs, with work to do in every step. Oracle: the totals that were announced."""
    progress = Recorder()
    lengths = {"prefill_len": 320, "kv_cache_len": 383}
    convert(checkpoint, tmp_path / "bundle", progress, **lengths)
    axcore.build(tmp_path / "bundle", toolchain="onnx", progress=progress)
    axcore.load(tmp_path / "bundle", progress=progress)
    axcore.load(tmp_path / "bundle", backend="torch", progress=progress)
    axcore.package(tmp_path / "bundle", tmp_path / "b", runtime="python", progress=progress)
    assert {"verify vision", "load language model", "checksums"} <= progress.totals.keys()
    assert {k: round(v) for k, v in progress.done.items()} == progress.totals
    assert any(line.startswith("verify vision: running ") for line in progress.said)


def test_other_c_libraries_and_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Musl has no malloc_trim, and few systems tell which cores a process may use."""
    assert 1 <= system.cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert system.cores() == (os.cpu_count() or 1)
    called = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=called.append))
    system.trim_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    system.trim_memory()
    assert called == [0]


def test_an_answer_is_shown_by_a_terminal_and_not_obeyed() -> None:
    """Pieces may part an escape sequence; a pipe gets every byte.

    Oracle: what arrives at the other end of a terminal, and of a pipe.
    """
    code = r"from axcore.display import stream; [stream(c) for c in '\x1b]0;x\x07é\u202e\n']"
    near, far = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=far, check=True)
    os.close(far)
    assert os.read(near, 999).decode() == "\\x1b]0;x\\x07é\\u202e\r\n"
    os.close(near)
    piped = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert piped.stdout.decode() == "\x1b]0;x\x07é\u202e\n"
