"""Turn images and other data into calibration samples. Independent of model families."""

from .archive import Archive, find_archive
from .arrays import SourceArray
from .images import (
    Found,
    SourceImage,
    check_arrays,
    check_images,
    embedded_images,
    files_below,
    find_data,
    find_images,
    read_image,
    warn_of_few,
)
from .samples import CalibrationSet, checked_sample, image_samples, load_samples, store_samples

__all__ = [
    "Archive",
    "CalibrationSet",
    "Found",
    "SourceArray",
    "SourceImage",
    "check_arrays",
    "check_images",
    "checked_sample",
    "embedded_images",
    "files_below",
    "find_archive",
    "find_data",
    "find_images",
    "image_samples",
    "load_samples",
    "read_image",
    "store_samples",
    "warn_of_few",
]
