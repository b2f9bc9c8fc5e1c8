"""What is measured: models, and what all parts of the table share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .measure import Run, axcore, script

REPEATS = 3


@dataclass(frozen=True)
class Case:
    """A model to be measured.

    Attributes:
        model: Its id.
        tower: Prefixes of the vision side's tensors on disk.
        most_gb: Memory that an export may take.
        depths: Depth of the tower to the changes of the config that make it so deep, and the
            language model small.
        ordinary: The script of this folder that exports its tower in the ordinary way.
        slack_s: Seconds that an export may take beyond the floor.
        folding: Options that make `convert` write the language model anew.
        native: Architecture under which newer transformers write it, in a layout of its own.
        answers: Whether its language model is built and asked.
        compared: Whether transformers is asked too.
    """

    model: str
    tower: tuple[str, ...]
    most_gb: float
    depths: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    ordinary: str | None = None
    slack_s: float | None = None
    folding: tuple[str, ...] = ()
    native: str | None = None
    answers: bool = False
    compared: bool = False


CASES = [
    Case(
        model="qwen2.5-vl-3b",
        ordinary="ordinary_qwen25vl",
        tower=("visual.",),
        most_gb=0.9,
        answers=True,
        depths={
            depth: {"vision_config": {"depth": depth}, "num_hidden_layers": 1, "vocab_size": 512}
            for depth in (8, 16, 32)
        },
    ),
    Case(
        model="minicpm-v-4",
        tower=("vpm.", "resampler."),
        most_gb=1.0,
        slack_s=15,
        depths={
            depth: {
                "vision_config": {"num_hidden_layers": depth},
                "num_hidden_layers": 1,
                "vocab_size": 512,
            }
            for depth in (9, 27)
        },
    ),
    Case(
        model="minicpm-v-2", tower=("vpm.", "resampler."), most_gb=1.0, folding=("--fold-scales",)
    ),
    Case(
        model="internvl3.5-1b",
        tower=("vision_model.", "mlp1."),
        most_gb=0.9,
        slack_s=12,
        native="InternVLForConditionalGeneration",
        answers=True,
        compared=True,
    ),
    Case(
        model="smolvlm2-500m",
        tower=("model.vision_model.", "model.connector."),
        most_gb=0.9,
        depths={
            depth: {
                "vision_config": {"num_hidden_layers": depth},
                "text_config": {"num_hidden_layers": 1, "vocab_size": 512},
            }
            for depth in (6, 12, 24)
        },
    ),
    Case(
        model="qwen3-vl-2b",
        tower=("model.visual.",),
        most_gb=0.9,
        depths={
            depth: {
                "vision_config": {"depth": depth, "deepstack_visual_indexes": [1, 3, 5]},
                "text_config": {"num_hidden_layers": 3, "vocab_size": 512},
            }
            for depth in (8, 16, 24)
        },
    ),
]


@dataclass(frozen=True)
class Row:
    """A line of the table; `met` is None where there is no target."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None


@dataclass
class Bench:
    """One case under measurement.

    Attributes:
        case: The model.
        size: "full" or, to try the benchmarks themselves, "tiny".
        work: Where outputs go; everything is removed once it is measured.
        images: A folder of photographs.
        ordinary: Whether to run the ordinary way too.
    """

    case: Case
    size: str
    work: Path
    images: Path
    ordinary: bool

    @cached_property
    def checkpoint(self) -> str:
        """The fabricated checkpoint, made by the first run and kept for later ones."""
        return str(script("fabricate", self.case.model, "--size", self.size).json)

    @property
    def image(self) -> Path:
        """The first of the photographs."""
        return sorted(self.images.glob("*.jpg"))[0]

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder below `work` that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            yield Path(folder)

    def convert(self, out: Path, size: str = "") -> Run:
        """Convert without verification into `out`, by the command line."""
        weights = ("--weights", f"random-{size or self.size}", "--images", self.images)
        return axcore("convert", self.case.model, *weights, "-o", out, "--no-verify")

    def export(self, *arguments: object) -> Run:
        """Export the tower into a folder that is gone afterwards."""
        with self.folder() as folder:
            return script("export", *(arguments or (self.checkpoint,)), folder)
