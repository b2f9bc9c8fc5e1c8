"""Judge a conversion: its answers by CLIP or by another side's, its features by the reference's."""

from .agreement import Agreement, Divergence, agreement, tokens_of, words
from .captions import Captions, write_captions
from .clip import ClipScores, clip_scores, pictures_by_name
from .clip_model import Clip
from .fidelity import Fidelity, dumped_features, fidelity, load_features, worst_first
from .judge import Judgement, judge
from .pictures import Question
from .plots import check_plot, plot_throughput
from .predictions import PredictionFile, Predictions, keys_of, match, read_predictions
from .statistics import Comparison, PictureDifference, compare, most_different
from .throughput import Measurement, measure_throughput
from .vision import VisionFidelity, measure_vision

__all__ = [
    "Agreement",
    "Captions",
    "Clip",
    "ClipScores",
    "Comparison",
    "Divergence",
    "Fidelity",
    "Judgement",
    "Measurement",
    "PictureDifference",
    "PredictionFile",
    "Predictions",
    "Question",
    "VisionFidelity",
    "agreement",
    "check_plot",
    "clip_scores",
    "compare",
    "dumped_features",
    "fidelity",
    "judge",
    "keys_of",
    "load_features",
    "match",
    "measure_throughput",
    "measure_vision",
    "most_different",
    "pictures_by_name",
    "plot_throughput",
    "read_predictions",
    "tokens_of",
    "words",
    "worst_first",
    "write_captions",
]
