"""Pictures in, calibration samples and archives out. Knows no model."""

from .pictures import Picture, check_pictures, embedded_pictures, find_pictures
from .samples import CalibrationSet, picture_samples, store_samples

__all__ = [
    "CalibrationSet",
    "Picture",
    "check_pictures",
    "embedded_pictures",
    "find_pictures",
    "picture_samples",
    "store_samples",
]
