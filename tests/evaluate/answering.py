"""A tiny bundle that answers, for one prompt at a time or for several."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import axcore
from axcore import Options, Registry
from axcore.calibration import embedded_images
from axcore.checkpoint.fabricate import fabricate

from ..bundles import SHARD_BYTES, map_tensors

MODEL = "qwen2.5-vl-3b"
STEM = "Qwen2.5-VL-3B-Instruct_vision"
IMAGES = embedded_images()[0].parent
CONTEXT, PROMPT_MAX, ROWS = 128, 96, 12
FLOAT32 = {"exact": "float32"}


@pytest.fixture(scope="session")
def model(once: Callable[..., Path]) -> Path:
    """A bundle that answers one prompt at a time. Tests do not change it."""
    card = Registry().find(MODEL).card
    options = Options(
        height=84, width=112, prefill_len=32, kv_cache_len=CONTEXT - 1, last_kv_cache_len=(32, 64)
    )

    def fabricated(out: Path) -> None:
        fabricate(card, "tiny", out, shard_bytes=SHARD_BYTES)
        # Large enough weights for an image to change the answer.
        map_tensors(out, lambda name, value: (name, value * 20 if value.ndim > 1 else value))

    def answering(out: Path) -> None:
        checkpoint = once("answering-checkpoint", fabricated)
        axcore.convert(str(checkpoint), out, options=options, verify=False)
        axcore.build(out, toolchain="onnx", options=FLOAT32)

    return once("answering", answering)


@pytest.fixture(scope="session")
def batched_model(once: Callable[..., Path], model: Path) -> Path:
    """The same bundle, for several prompts at once. Tests do not change it."""

    def make(out: Path) -> None:
        shutil.copytree(model, out)
        axcore.build(out, toolchain="onnx", options={**FLOAT32, "dynamic-batch": "yes"})

    return once("answering-batched", make)
