"""Caption a folder of pictures, against asking about each in a loop without anything around it.

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
from axcore.calibration import find_pictures
from axcore.evaluate import Captions, PredictionFile
from axcore.evaluate.captions import answer_pictures
from axcore.evaluate.pictures import pictures_to_judge
from axcore.progress import Silent
from axcore.runtime.runner import Runner


def alone(runner: Runner, images: Path, captions: Captions) -> float:
    """Return the seconds of loading pictures and answering, and nothing else."""
    started = time.perf_counter()
    for picture in find_pictures([images]):
        runner.forget()
        prompt = runner.prepare(captions.question.messages(picture.load()))
        "".join(runner.answer(prompt, captions.sampling, captions.max_new_tokens))
    return time.perf_counter() - started


def captioned(runner: Runner, images: Path, captions: Captions) -> float:
    """Return the seconds of `axcore evaluate captions` behind the loading of the model."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        pictures = pictures_to_judge(images)
        keys = {picture.name: picture.name for picture in pictures}
        file = PredictionFile(Path(folder) / "captions.json", {})
        answer_pictures(runner, pictures, keys, captions, file, Silent())
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
