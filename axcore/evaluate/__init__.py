"""Evaluate a conversion: answers by CLIP score or against other answers, features by reference."""

from .agreement import Agreement, Divergence, agreement, tokens_of, words
from .captions import Captions, write_captions
from .clip import clip_scores, images_by_name
from .clip_model import Clip
from .fidelity import Fidelity, dumped_features, fidelity, load_features, worst_first
from .images import Question
from .judge import Judgement, judge
from .measurement import Measurement
from .plots import plot_throughput
from .predictions import PredictionFile, Predictions, keys_of, match, read_predictions
from .statistics import Comparison, compare, most_different
from .throughput import measure_throughput
from .vision import VisionFidelity, measure_vision

__all__ = [
    "Agreement",
    "Captions",
    "Clip",
    "Comparison",
    "Divergence",
    "Fidelity",
    "Judgement",
    "Measurement",
    "PredictionFile",
    "Predictions",
    "Question",
    "VisionFidelity",
    "agreement",
    "clip_scores",
    "compare",
    "dumped_features",
    "fidelity",
    "images_by_name",
    "judge",
    "keys_of",
    "load_features",
    "match",
    "measure_throughput",
    "measure_vision",
    "most_different",
    "plot_throughput",
    "read_predictions",
    "tokens_of",
    "words",
    "worst_first",
    "write_captions",
]
