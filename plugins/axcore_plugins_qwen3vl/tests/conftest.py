"""A small checkpoint, and the jobs that are asked of it."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Protocol

import axcore_plugins_qwen3vl as plugin
import numpy as np
import pytest
from PIL import Image

from axcore import Job, Options, Registry, Silent
from axcore.checkpoint import fabricate
from axcore.pipeline.job import open_job
from axcore.request import Request

CARD = plugin.model_cards()[0]


class MakeJob(Protocol):
    """Makes a job for images of one size."""

    def __call__(self, height: int, width: int, task: str = "image") -> Job: ...


@pytest.fixture(scope="session")
def registry() -> Registry:
    """This family alone, whatever else is installed."""
    return Registry([EntryPoint("qwen3vl", "axcore_plugins_qwen3vl", "axcore")])


@pytest.fixture(scope="session")
def make_job(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Return a maker of jobs for the 2B model with the card's overrides for quick conversions."""
    folder = fabricate(CARD, "tiny", tmp_path_factory.mktemp("checkpoint") / "folder")

    def make(height: int, width: int, task: str = "image") -> Job:
        options = Options(task=task, height=height, width=width)
        return open_job(Request.of(str(folder), options=options), registry, Silent())

    return make


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a smooth image with edges: noise enlarged, so that resizing has work to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
