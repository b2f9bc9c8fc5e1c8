"""Pictures in, calibration samples and archives out. Knows no model."""

from .archive import Archive, find_archive
from .pictures import (
    Picture,
    check_pictures,
    embedded_pictures,
    find_pictures,
    read_picture,
    warn_of_few,
)
from .samples import CalibrationSet, picture_samples, store_samples

__all__ = [
    "Archive",
    "CalibrationSet",
    "Picture",
    "check_pictures",
    "embedded_pictures",
    "find_archive",
    "find_pictures",
    "picture_samples",
    "read_picture",
    "store_samples",
    "warn_of_few",
]
