"""Prepares prompts where nothing is that a board lacks, and prints what they are like as JSON.

Its source is run by a Python of its own: bundle, then name and module of the family's plugin.
"""

from __future__ import annotations

import sys

BLOCKED = ("torch", "transformers", "onnx", "onnxruntime", "pydantic", "typer", "psutil", "scipy")
for name in BLOCKED:
    sys.modules[name] = None  # type: ignore[assignment] # importing it fails

import hashlib  # noqa: E402
import json  # noqa: E402
from contextlib import suppress  # noqa: E402
from importlib.metadata import EntryPoint  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from axcore import AxcoreError, Registry, UsageError, load_tokenizer  # noqa: E402
from axcore.calibration import embedded_images  # noqa: E402
from axcore.discovery import located  # noqa: E402
from axcore.runtime.deployment import Deployment  # noqa: E402

FIRST, SECOND = embedded_images()[:2]


def message(role: str, *parts: Any) -> dict[str, Any]:
    """Return a message; a path is an image."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": role, "content": content}


def asked(*parts: Any) -> list[dict[str, Any]]:
    """Return a conversation of one message."""
    return [message("user", *parts)]


CONVERSATIONS = {
    "text alone": asked("what?"),
    "one picture": asked(FIRST, "what?"),
    "another picture": asked(SECOND, "what?"),
    "two pictures": asked(FIRST, SECOND, "what?"),
    "a second turn": [
        *asked(FIRST, "what?"),
        message("assistant", "a word"),
        message("user", "why?"),
    ],
}


class Board:
    """A bundle on a board: its family, and its tokenizer."""

    def __init__(self, bundle: str, key: str, module: str) -> None:
        registry = Registry([EntryPoint(key, module, "axcore")])
        for problem in registry.problems:
            raise SystemExit(f"the plugin is set aside: {problem.error}")
        self.deployment = Deployment.open(Path(bundle), registry)
        self.tokenizer = load_tokenizer(self.deployment.folder, ())
        self.added = self.tokenizer.get_added_tokens_decoder()
        self.unknown = json.loads(self.tokenizer.to_str())["model"].get("unk_token")

    def prompt(self, messages: list[dict[str, Any]]) -> Any:
        """Return the prompt that the family makes."""
        job = self.deployment.job
        return self.deployment.hook("prepare_prompt", job=job, messages=messages)

    def facts(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the laws look at, or why the family refuses."""
        try:
            prompt = self.prompt(messages)
        except (AxcoreError, ImportError) as error:
            refused = isinstance(error, UsageError)
            return {"error": located(error), "refused": refused}
        ids, positions = np.asarray(prompt.input_ids), np.asarray(prompt.position_ids)
        return {
            "ids": ids.tolist(),
            "types": [str(ids.dtype), str(positions.dtype)],
            "shapes": [ids.shape, positions.shape],
            "positions": positions.T.tolist(),
            "places": {name: _runs(rows) for name, rows in prompt.vision_rows.items()},
            "samples": {name: [*map(_digest, made)] for name, made in prompt.images.items()},
        }

    def markers(self, text: str, role: str = "user") -> dict[int, int]:
        """Return how often each added token is in the prompt of a picture and a text."""
        ids = self.prompt([message(role, FIRST, text)]).input_ids.tolist()
        return {n: ids.count(n) for n in self.added if self.added[n].content != self.unknown}

    def typed(self) -> dict[str, list[str]]:
        """Return the tokens that what a user types becomes, and those that a role becomes."""
        expected = self.markers("what?")
        special = [n for n in expected if self.added[n].special or expected[n]]
        said = " ".join(self.added[n].content for n in special)
        found = {"said": self.markers("what? " + said)}
        with suppress(AxcoreError):
            found["role"] = self.markers("what?", "user" + said)
        return {
            name: [self.added[n].content for n in special if counts[n] != expected[n]]
            for name, counts in found.items()
        }


def _runs(rows: Any) -> dict[str, Any]:
    """Return the places of each run, or of all together."""
    whole = isinstance(rows, np.ndarray)
    runs = [rows] if whole else rows
    return {"whole": whole, "runs": [np.asarray(run).tolist() for run in runs]}


def _digest(sample: Any) -> str:
    made = hashlib.sha256()
    for name, array in sorted(sample.items()):
        made.update(f"{name} {array.dtype} {array.shape}".encode())
        made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()


def main(bundle: str, key: str, module: str, *wanted: str) -> None:
    """Print what is wanted: "typed", or conversations by name."""
    board = Board(bundle, key, module)
    found: dict[str, Any] = {name: board.facts(CONVERSATIONS[name]) for name in wanted}
    if not wanted:
        found = dict(board.typed())
    found["added"] = [*board.added]
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
