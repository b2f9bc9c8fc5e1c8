"""Score prediction files by CLIP, and compare two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clip import ClipScores, clip_scores, images_by_name
from .clip_model import Clip
from .predictions import match, read_predictions
from .statistics import (
    Comparison,
    ImageDifference,
    check_confidence,
    compare,
    most_different,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..progress import Progress


@dataclass(frozen=True)
class Judgement:
    """What the judge found.

    Attributes:
        scores: Scores of every file.
        comparison: The first of two files minus the second; None for any other number of files.
        differences: The images on which two files differ most.
    """

    scores: ClipScores
    comparison: Comparison | None = None
    differences: tuple[ImageDifference, ...] = ()


def judge(
    files: Sequence[Path],
    images: Path,
    clip: Path,
    *,
    tokenizer: Path | None = None,
    common: bool = False,
    confidence: float = 0.95,
    most: int = 5,
    progress: Progress | None = None,
) -> Judgement:
    """Score prediction files by CLIP, and compare two.

    Args:
        clip: Weights of the judge, see `Clip.load`.
        tokenizer: Its vocabulary; None looks beside the weights.
        common: Ignore images that are not in all files, instead of refusing them.
        confidence: Level of the interval, checked before anything is read.
        most: How many of the images that differ most to name.

    Raises:
        UsageError: The files are not about the same images, there is no vocabulary, or the level
            is out of range.
        ImageError: Images are missing, or none can be read.
        CheckpointError: The weights are damaged or those of another model.
    """
    check_confidence(confidence)
    answers = match([read_predictions(path) for path in files], common=common)
    shown = images_by_name(images, answers)
    scores = clip_scores(Clip.load(clip, tokenizer), answers, shown, progress)
    if len(files) != 2:
        return Judgement(scores)
    first, second = scores.values
    return Judgement(
        scores,
        compare(first, second, confidence=confidence),
        tuple(most_different(scores.names, first, second, most)),
    )
