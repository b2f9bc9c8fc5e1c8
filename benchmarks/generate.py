"""Let transformers answer: greedy `generate` on rows that are given.

`write` takes the language model out of a checkpoint; `run` prints the seconds of prefill and of
decoding. Ends of answers are ignored, and a short answer before warms up.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from axcore import Registry, Silent
from axcore.language.checkpoint import write_checkpoint
from axcore.pipeline.job import open_job
from axcore.quantization.language import language_of
from axcore.request import Request


class Clock(BaseStreamer):
    """Notes when each token comes; the prompt is the first."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take a token."""
        del value
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        """Take the end."""


def write(checkpoint: str, folder: Path) -> None:
    """Write the language model as a checkpoint of its own."""
    registry = Registry()
    job = open_job(Request.of(checkpoint), registry, Silent())
    with job.checkpoint:
        wanted = language_of(job, registry).checkpoint
        write_checkpoint(job.checkpoint, wanted, folder, Silent())


def generate(model: Any, rows: torch.Tensor, tokens: int) -> dict[str, Any]:
    """Answer from the beginning."""
    clock, started = Clock(), time.perf_counter()
    rows = rows.to(model.dtype)
    given = {"inputs_embeds": rows, "attention_mask": torch.ones(rows.shape[:2], dtype=torch.int64)}
    with torch.inference_mode():
        made = model.generate(**given, do_sample=False, max_new_tokens=tokens, streamer=clock)
    _, first, *_, last = clock.moments
    return {"prefill_s": first - started, "decode_s": last - first, "tokens": made[0].tolist()}


def run(folder: Path, rows: Path, tokens: int, dtype: str) -> dict[str, Any]:
    """Load, warm up, answer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    read = torch.from_numpy(np.load(rows))[None]
    generate(model, read, 2)
    return generate(model, read, tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    writing = steps.add_parser("write")
    writing.add_argument("checkpoint")
    writing.add_argument("folder", type=Path)
    running = steps.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("rows", type=Path)
    running.add_argument("--tokens", type=int, required=True)
    running.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    if arguments.step == "write":
        write(arguments.checkpoint, arguments.folder)
    else:
        print(json.dumps(run(arguments.folder, arguments.rows, arguments.tokens, arguments.dtype)))
