"""Metrics of how close the features of one backend are to those of another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ..calibration.npy import read_array
from ..errors import UsageError
from ..foreign import open_regular, reason
from ..limits import FEATURES_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Fidelity:
    """How close the features of an image are to the reference.

    If there are infinities or NaNs among the features, all three metrics are NaN.

    Attributes:
        image: Its name.
        component: The vision component that computed the features.
        cosine: Cosine similarity, -1 to 1; 1 if both are all zeros, 0 if only one is.
        max_abs: Largest absolute difference of an element.
        snr_db: Energy of the reference over that of the difference, in dB; infinite where they
            are equal.
    """

    image: str
    component: str
    cosine: float
    max_abs: float
    snr_db: float


def fidelity(image: str, component: str, features: Array, reference: Array) -> Fidelity:
    """Compare two arrays of features in float64.

    Args:
        features: Float of any width, bfloat16 included.
        reference: Likewise; of the same shape, dimensions of length 1 aside.

    Raises:
        UsageError: The shapes differ.
    """
    if _long(features.shape) != _long(reference.shape):
        raise UsageError(
            f"`{component}` of `{image}` has features of shape {[*features.shape]}, "
            f"the reference {[*reference.shape]}",
            hint="compare the same component at the same image size",
        )
    ours = features.astype(np.float64).ravel()
    theirs = reference.astype(np.float64).ravel()
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return Fidelity(image, component, math.nan, math.nan, math.nan)
    noise = ours - theirs
    return Fidelity(
        image, component, _cosine(ours, theirs), float(np.abs(noise).max()), _snr(theirs, noise)
    )


def worst_first(results: Iterable[Fidelity]) -> list[Fidelity]:
    """Sort by signal-to-noise ratio, NaNs and then the lowest first."""

    def goodness(one: Fidelity) -> tuple[bool, float, str, str]:
        known = not math.isnan(one.snr_db)
        return known, one.snr_db if known else 0.0, one.image, one.component

    return sorted(results, key=goodness)


def dumped_features(folder: Path, component: str, image: str) -> Path:
    """Return the file of an image's features: ``<folder>/<component>/<image>.npy``.

    Args:
        image: Base name with suffix, so ``photo.jpg`` is in ``photo.jpg.npy``.
    """
    return folder / component / f"{image}.npy"


def load_features(path: Path) -> Array:
    """Read features that ``numpy.save`` wrote; nothing is unpickled.

    Returns:
        A float array as it was saved. numpy stores bfloat16 as two opaque bytes; these come back
        as bfloat16.

    Raises:
        UsageError: The file is missing, damaged, empty, larger than `FEATURES_BYTES`, or holds no
            floats.
    """
    try:
        features = _loaded(path)
    except Exception as error:  # numpy raises many kinds on damaged bytes
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{path} cannot be read as features\n  {why}",
            hint="save them on the board with `numpy.save(path, array)`",
        ) from error
    if features.dtype == np.dtype("V2"):
        features = features.view(ml_dtypes.bfloat16)
    if not _is_float(features):
        raise UsageError(
            f"{path} holds {features.dtype}, shape {[*features.shape]}, where features are"
            " expected",
            hint="save the component's float output, one array a file",
        )
    return features


def _loaded(path: Path) -> Array:
    with open_regular(path, FEATURES_BYTES) as file:
        return read_array(file)


def _is_float(array: Array) -> bool:
    return array.size > 0 and (
        np.issubdtype(array.dtype, np.floating) or array.dtype == np.dtype(ml_dtypes.bfloat16)
    )


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop dimensions of length 1, which boards add or omit."""
    return tuple(length for length in shape if length != 1)


def _cosine(ours: Array, theirs: Array) -> float:
    norms = math.sqrt(float(ours @ ours)) * math.sqrt(float(theirs @ theirs))
    return float(ours @ theirs) / norms if norms else float(bool((ours == theirs).all()))


def _snr(reference: Array, noise: Array) -> float:
    signal, error = float(reference @ reference), float(noise @ noise)
    if not error:
        return math.inf
    return 10 * math.log10(signal / error) if signal else -math.inf
