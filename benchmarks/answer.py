"""Answer about an image; print the seconds of prefill, of decoding and of the sessions' runs.

The rows that the language model read are written, so that another can read the same. Ends of
answers are ignored, and a short answer before warms up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from axcore import Prompt, Registry
from axcore.runtime.deployment import Deployment
from axcore.runtime.engine import Session, load_engine
from axcore.runtime.language import LayerModels
from axcore.runtime.runner import Answer, Runner
from axcore.runtime.vision import VisionSessions, VisionSide

SUFFIX = ".onnx"


class Clocked:
    """An engine that notes how long each run of its sessions takes."""

    def __init__(self) -> None:
        self._engine = load_engine("onnx")
        self.seconds: list[float] = []

    def InferenceSession(self, path: str) -> Session:  # noqa: N802 - pyaxengine's name
        """Open a model."""
        session = self._engine.InferenceSession(path)
        bind = session.bind  # type: ignore[attr-defined]
        session.run = self._timed(session.run)  # type: ignore[method-assign]
        session.bind = lambda *given: self._timed(bind(*given))  # type: ignore[attr-defined]
        return session

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            outputs = run(*given, **named)
            self.seconds.append(time.perf_counter() - started)
            return outputs

        return timed


def answered(runner: Runner, prompt: Prompt, tokens: int) -> tuple[Answer, float]:
    """Answer from the beginning; return it, and the seconds from its first token on."""
    runner.forget()
    answer, started = Answer(), time.perf_counter()
    for _ in runner.answer(prompt, max_new_tokens=tokens, answer=answer):
        pass
    return answer, time.perf_counter() - started - answer.first_token_s


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", type=Path)
parser.add_argument("image", type=Path)
parser.add_argument("rows", type=Path, help="float32 [n, hidden] goes here, as .npy")
parser.add_argument("--question", required=True)
parser.add_argument("--tokens", type=int, required=True)
arguments = parser.parse_args()

registry, engine = Registry(), Clocked()
deployment = replace(Deployment.open(arguments.bundle, registry), stop_ids=frozenset())
vision = VisionSide(VisionSessions(deployment, engine, SUFFIX), deployment.graphs)
runner = Runner(deployment, registry, vision, LayerModels(deployment, engine, SUFFIX))
content = [
    {"type": "image", "image": arguments.image},
    {"type": "text", "text": arguments.question},
]
prompt = replace(runner.prepare([{"role": "user", "content": content}]), stop_ids=())
np.save(arguments.rows, runner.rows(prompt))
answered(runner, prompt, 2)
answer, seconds = answered(runner, prompt, arguments.tokens)
decoding = answer.steps * (deployment.layers + 1)  # runs, the head's included
print(
    json.dumps(
        {
            "prompt": answer.prompt_tokens,
            "prefill_s": answer.prefill_s,
            "decode_s": seconds,
            "run_s": sum(engine.seconds[-decoding:]),
            "tokens": answer.token_ids,
        }
    )
)
