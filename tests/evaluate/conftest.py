"""The shared bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..bundles import axcore_command, own_cache
from . import answering

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["axcore_command", "own_cache"]


@pytest.fixture(scope="session")
def model(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that answers one prompt at a time."""
    return answering.built(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def batched_model(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that answers several prompts at once."""
    return answering.built_batched(tmp_path_factory.getbasetemp())
