"""`axcore quantize gptq` as people call it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .conftest import standin_python

if TYPE_CHECKING:
    from pathlib import Path

    from ..bundles import Axcore

SMALL = ("quantize", "gptq", "qwen2.5-vl-3b", "--weights", "random-tiny")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the test's folder, the small checkpoint included."""
    monkeypatch.setenv("AXCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_data_goes_to_stdout_and_messages_to_stderr(axcore: Axcore, tmp_path: Path) -> None:
    """And the folder is named after the model. Oracle: a JSON parser; the stand-in's figures."""
    asked = ("--group-size", 32, "--bits", 8, "--python", standin_python(tmp_path), "--json")
    done = axcore(*SMALL, *asked)
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert (data["bits"], data["group_size"], data["matrices"]) == (8, 32, 14)
    assert data["folder"] == str(tmp_path / "Qwen2.5-VL-3B-Instruct-GPTQ-Int8")
    # Else it would be taken for a fabricated one, and replaced.
    assert not (tmp_path / "Qwen2.5-VL-3B-Instruct-GPTQ-Int8/fabricated.json").exists()
    assert "merge" in done.err


def test_a_wrong_request_exits_with_two(axcore: Axcore) -> None:
    """Oracle: the width of the small checkpoint, 64."""
    done = axcore(*SMALL)
    assert done.code == 2
    assert "groups of 128 do not divide the 64 inputs" in done.err
    assert "hint: choose --group-size from 16, 32, 64, -1" in done.err
