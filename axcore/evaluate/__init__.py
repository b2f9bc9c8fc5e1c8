"""Judge a conversion: its answers by CLIP or by another side's, its features by the reference's."""

from .agreement import Agreement, Divergence, agreement, tokens_of, words
from .clip import ClipScores, clip_scores, pictures_by_name
from .clip_model import Clip
from .fidelity import Fidelity, dumped_features, fidelity, load_features, worst_first
from .predictions import PredictionFile, Predictions, keys_of, match, read_predictions
from .statistics import Comparison, PictureDifference, compare, most_different

__all__ = [
    "Agreement",
    "Clip",
    "ClipScores",
    "Comparison",
    "Divergence",
    "Fidelity",
    "PictureDifference",
    "PredictionFile",
    "Predictions",
    "agreement",
    "clip_scores",
    "compare",
    "dumped_features",
    "fidelity",
    "keys_of",
    "load_features",
    "match",
    "most_different",
    "pictures_by_name",
    "read_predictions",
    "tokens_of",
    "words",
    "worst_first",
]
