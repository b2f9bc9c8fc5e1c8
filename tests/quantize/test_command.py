"""`axcore quantize gptq` as people call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

from .conftest import standin_python


def axcore(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Quantise the small checkpoint of an installed family."""
    words = ["quantize", "gptq", "qwen2.5-vl-3b", "--weights", "random-tiny", *arguments]
    return subprocess.run(
        [sys.executable, "-m", "axcore", *words],
        cwd=folder,
        env={**os.environ, "AXCORE_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_data_goes_to_stdout_and_messages_to_stderr(tmp_path: Path) -> None:
    """And the folder is named after the model. Oracle: a JSON parser; the stand-in's figures."""
    python = standin_python(tmp_path)
    done = axcore(tmp_path, "--group-size", "32", "--bits", "8", "--python", str(python), "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data["bits"], data["group_size"], data["matrices"]) == (8, 32, 14)
    assert data["folder"] == str(tmp_path / "Qwen2.5-VL-3B-Instruct-GPTQ-Int8")
    # Else it would be taken for a fabricated one, and replaced.
    assert not (tmp_path / "Qwen2.5-VL-3B-Instruct-GPTQ-Int8/fabricated.json").exists()
    assert "merge" in done.stderr
    again = axcore(tmp_path, "--group-size", "32", "--bits", "8", "--python", str(python))
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_wrong_request_exits_with_two(tmp_path: Path) -> None:
    """Oracle: the width of the small checkpoint, 64."""
    done = axcore(tmp_path)
    assert done.returncode == 2
    assert "groups of 128 do not divide the 64 inputs" in done.stderr
    assert "hint: choose --group-size from 16, 32, 64, -1" in done.stderr
