"""A tiny bundle that answers, for one prompt at a time or for several."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import axcore
from axcore import Options, Registry
from axcore.calibration import embedded_images
from axcore.checkpoint.fabricate import fabricate

from ..bundles import SHARD_BYTES, map_tensors

MODEL = "qwen2.5-vl-3b"
STEM = "Qwen2.5-VL-3B-Instruct_vision"
IMAGES = embedded_images()[0].parent
CONTEXT, PROMPT_MAX, ROWS = 128, 96, 12
FLOAT32 = {"weight-type": "fp32", "hidden-state-type": "fp32"}


@cache  # once for all modules that want it
def built(base: Path) -> Path:
    """Return a bundle that runs one prompt at a time. Tests do not change it."""
    options = Options(
        height=84, width=112, prefill_len=32, kv_cache_len=CONTEXT - 1, last_kv_cache_len=(32, 64)
    )
    out = base / "answering"
    card = Registry().find(MODEL).card
    checkpoint = fabricate(card, "tiny", base / "answering-checkpoint", shard_bytes=SHARD_BYTES)
    # Large enough weights for an image to change the answer.
    map_tensors(checkpoint, lambda name, value: (name, value * 20 if value.ndim > 1 else value))
    axcore.convert(str(checkpoint), out, options=options, verify=False)
    axcore.build(out, toolchain="onnx", options=FLOAT32)
    return out


@cache
def built_batched(base: Path) -> Path:
    """Return the same bundle, for several prompts at once. Tests do not change it."""
    out = Path(shutil.copytree(built(base), base / "answering-free"))
    axcore.build(out, toolchain="onnx", options={**FLOAT32, "dynamic-batch": "yes"})
    return out
