"""What `make demo` chooses to show."""

from __future__ import annotations

import runpy
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.py"
Memory = namedtuple("Memory", "available")


@pytest.mark.parametrize(
    ("memory_gb", "disk_gb", "chosen"),
    [
        (20, 40, ("qwen2.5-vl-3b", "random-full")),
        (8, 40, ("internvl3.5-1b", "random-full")),
        (20, 10, ("internvl3.5-1b", "random-full")),
        (2, 40, ("internvl3.5-1b", "random-tiny")),
        (20, 1, ("internvl3.5-1b", "random-tiny")),
    ],
)
def test_the_largest_model_that_fits_is_taken(
    memory_gb: int,
    disk_gb: int,
    chosen: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With nothing fabricated yet; what does not fit is named with numbers.

    Oracle: the needs that the script lists, by hand.
    """
    monkeypatch.setenv("AXCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(memory_gb * 1e9))
    demo = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(demo["choose"].__globals__, "free_gb", lambda _: float(disk_gb))
    assert demo["choose"]() == chosen
    said = capsys.readouterr().out
    assert ("tiny" in said) == (chosen[1] == "random-tiny")
    assert (f"{disk_gb} GB and {memory_gb} GB are free" in said) == (chosen[0] != "qwen2.5-vl-3b")
