"""The part of the table about judging answers; measured once, with the first model."""

from __future__ import annotations

from collections.abc import Iterator

from .bench import CASES, Bench, Row
from .measure import axcore, both, script


def clip_rows(bench: Bench) -> Iterator[Row]:
    """Scoring 100 images and answers by CLIP, against its bare forward passes."""
    if bench.case is not CASES[0]:
        return
    with bench.folder() as folder:
        script("clip", "fabricate", folder, "--size", bench.size)
        scoring = script("clip", "score", folder)
    seconds = scoring.json
    ratio = (seconds["load"] + seconds["score"]) / seconds["bare"]
    yield Row("CLIP score of 100 images in two files, against bare forward passes",
              f"{seconds['load'] + seconds['score']:.1f} s against {seconds['bare']:.1f} s:"
              f" {ratio:.2f}x", "≤ 1.3x", ratio <= 1.3)  # fmt: skip
    yield Row("the same, the whole process", both(scoring), "≤ 5 GB", scoring.peak_bytes <= 5e9)


def caption_rows(bench: Bench) -> Iterator[Row]:
    """Captions of a tiny model, against asking it in a loop."""
    if bench.case is not CASES[0]:
        return
    with bench.folder() as folder:
        bundle = folder / "bundle"
        bench.convert(bundle, "tiny")
        axcore("build", bundle, "--toolchain", "onnx")
        seconds = script("captions", bundle, bench.images).json
    ratio = seconds["captions"] / seconds["run"]
    yield Row("captions of a tiny model, against `run` in a loop",
              f"{seconds['captions']:.3f} s against {seconds['run']:.3f} s: {ratio:.2f}x",
              "≤ 1.05x", ratio <= 1.05)  # fmt: skip
