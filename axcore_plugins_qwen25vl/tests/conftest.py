"""The job that asks for a small tower."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import pytest

import axcore_plugins_qwen25vl as plugin
from axcore import Job, Options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class MakeJob(Protocol):
    """Makes a job for images of one size."""

    def __call__(
        self, height: int, width: int, task: str = "image", folder: Path | None = None
    ) -> Job: ...


@dataclass(frozen=True)
class CheckpointStandIn:
    """A stand-in for an opened checkpoint: what the hooks of this family look at."""

    config: Mapping[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Return a maker of jobs for the 3B model with the card's overrides for quick conversions."""
    card = plugin.model_cards()[0]
    config = card.published.tiny_config
    shared = tmp_path_factory.mktemp("checkpoint")

    def make(height: int, width: int, task: str = "image", folder: Path | None = None) -> Job:
        checkpoint = cast("Any", CheckpointStandIn(config, folder or shared))
        profile = replace(card.profiles[task], height=height, width=width)
        return Job(card, "qwen25vl", checkpoint, task, profile, Options())

    return make
