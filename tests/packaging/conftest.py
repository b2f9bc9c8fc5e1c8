"""The toy family, importable for one test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from .toys import AXLLM, MODULE, write_bundle, write_family

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the toy family is imported from."""
    folder = tmp_path / "site"
    write_family(folder, AXLLM)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return folder


@pytest.fixture
def bundle(family: Path, tmp_path: Path) -> Path:
    """A toy bundle with compiled models."""
    del family
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def onnx_bundle(family: Path, tmp_path: Path) -> Path:
    """A toy bundle with ONNX models."""
    del family
    return write_bundle(tmp_path / "bundle", ".onnx")
