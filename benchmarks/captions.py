"""Caption a folder of images, against asking about each in a loop without anything around it.

Prints the seconds of both as JSON: the least of rounds that run in turns, as what disturbs a round
only adds to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from axcore import Registry
from axcore.calibration import find_images
from axcore.evaluate import Captions, PredictionFile
from axcore.evaluate.captions import answer_images
from axcore.evaluate.images import images_to_judge
from axcore.progress import Silent
from axcore.runtime.runner import Runner


def alone(runner: Runner, images: Path, captions: Captions) -> float:
    """Return the seconds of loading images and answering, and nothing else."""
    started = time.perf_counter()
    for image in find_images([images]):
        runner.forget()
        prompt = runner.prepare(captions.question.messages(image.load()))
        "".join(runner.answer(prompt, captions.sampling, captions.max_new_tokens))
    return time.perf_counter() - started


def captioned(runner: Runner, images: Path, captions: Captions) -> float:
    """Return the seconds of `axcore evaluate captions` behind the loading of the model."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        shown = images_to_judge(images)
        keys = {image.name: image.name for image in shown}
        file = PredictionFile(Path(folder) / "captions.json", {})
        answer_images(runner, shown, keys, captions, file, Silent())
        return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    runner = Runner.open(arguments.bundle, Registry())
    asked = Captions(max_new_tokens=arguments.tokens)
    seconds: dict[str, list[float]] = {"run": [], "captions": []}
    for _ in range(arguments.rounds):
        seconds["run"].append(alone(runner, arguments.images, asked))
        seconds["captions"].append(captioned(runner, arguments.images, asked))
    print(json.dumps({name: min(taken) for name, taken in seconds.items()}))
