"""Fidelity numbers. The oracles are closed forms for features built on purpose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from axcore import UsageError
from axcore.evaluate import Fidelity, dumped_features, fidelity, load_features, worst_first

if TYPE_CHECKING:
    from pathlib import Path

features = npst.arrays(np.float32, (4, 6), elements=st.floats(-8, 8, width=16))


@given(features, st.floats(0.0625, 8, width=16))
def test_a_scaled_copy(reference: np.ndarray[Any, Any], factor: float) -> None:
    """Cosine 1, and a ratio that depends on the factor alone. Oracle: -20 log10 |factor - 1|."""
    made = fidelity("p", "c", reference * np.float32(factor), reference)
    largest = float(np.abs(reference).max())
    assert made.cosine == pytest.approx(1)
    assert made.max_abs == pytest.approx(abs(factor - 1) * largest, abs=1e-5)
    if factor == 1 or not largest:
        assert made.snr_db == math.inf
    else:
        assert made.snr_db == pytest.approx(-20 * math.log10(abs(factor - 1)), abs=1e-3)


def test_orthogonal_noise() -> None:
    """Oracle: for noise of a tenth of the length at a right angle, 20 dB and 1/sqrt(1.01)."""
    made = fidelity("p", "c", np.array([[10.0, 1.0]]), np.array([10.0, 0.0]))
    assert made.cosine == pytest.approx(1 / math.sqrt(1.01))
    assert made.max_abs == 1
    assert made.snr_db == pytest.approx(20)


def test_edges() -> None:
    """Zeros, and numbers that are none. Oracle: the docstring."""
    zero, one = np.zeros(3), np.ones(3)
    assert fidelity("p", "c", zero, zero) == Fidelity("p", "c", 1, 0, math.inf)
    assert fidelity("p", "c", one, zero) == Fidelity("p", "c", 0, 1, -math.inf)
    assert fidelity("p", "c", zero, one) == Fidelity("p", "c", 0, 1, 0)
    for odd in (math.nan, math.inf):
        made = fidelity("p", "c", np.array([1, 1, odd]), one)
        assert all(map(math.isnan, (made.cosine, made.max_abs, made.snr_db)))


def test_shapes_must_agree() -> None:
    """But for dimensions of length 1, which a board leaves out. Oracle: the message."""
    fidelity("p", "c", np.zeros((1, 4, 2)), np.zeros((4, 2, 1)))
    with pytest.raises(UsageError, match=r"`c` of `p` has .*\[2, 4\], the reference \[4, 2\]"):
        fidelity("p", "c", np.zeros((2, 4)), np.zeros((4, 2)))


@given(st.lists(st.sampled_from([math.nan, -math.inf, math.inf, 20.0, -3.0]), max_size=8))
def test_the_worst_comes_first(ratios: list[float]) -> None:
    """Not-a-numbers, then ascending ratios. Oracle: counting, and sorting the rest."""
    rows = [Fidelity(str(i), "c", 0, 0, ratio) for i, ratio in enumerate(ratios)]
    made = [row.snr_db for row in worst_first(rows)]
    broken = sum(map(math.isnan, ratios))
    assert all(map(math.isnan, made[:broken]))
    assert made[broken:] == sorted(ratio for ratio in ratios if not math.isnan(ratio))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_dumped_features_come_back(tmp_path: Path, dtype: str) -> None:
    """Every float that numpy can save, bfloat16 among them. Oracle: the array that was saved."""
    saved = np.linspace(-3, 3, 24).reshape(4, 6).astype(getattr(ml_dtypes, dtype, dtype))
    path = dumped_features(tmp_path, "vision", "photo.jpg")
    assert path == tmp_path / "vision" / "photo.jpg.npy"
    path.parent.mkdir()
    np.save(path, saved)
    loaded = load_features(path)
    assert loaded.dtype == saved.dtype
    assert fidelity("p", "c", loaded, saved).snr_db == math.inf


def test_what_is_no_feature_file(tmp_path: Path) -> None:
    """Nothing is unpickled. Oracle: the messages."""
    path = tmp_path / "a.npy"
    for content, message in (
        (np.array([{"a": 1}], object), "cannot be read as features"),
        (np.arange(3), r"holds int64, shape \[3\], where features"),
        (np.zeros((0, 4)), r"holds float64, shape \[0, 4\]"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(UsageError, match=message):
            load_features(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UsageError, match="cannot be read as features"):
        load_features(path)
    with pytest.raises(UsageError, match="cannot be read as features"):
        load_features(tmp_path / "missing.npy")
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "a.npz").rename(path)
    with pytest.raises(UsageError, match="an archive of several arrays"):
        load_features(path)
