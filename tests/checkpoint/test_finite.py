"""NaN and infinity in weights are found while they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from axcore.checkpoint import Checkpoint
from axcore.checkpoint.finite import Finite
from axcore.checkpoint.headers import TensorInfo
from axcore.errors import CheckpointError

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FLOATS),
    st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=40),
    st.integers(1, 5),
)
def test_any_bits_are_judged_as_torch_judges_them(
    dtype: torch.dtype, raw: list[bytes], values: int
) -> None:
    """Counts and first place, for any bits in chunks of any size; oracle: torch."""
    content = b"".join(raw)
    tensor = torch.frombuffer(bytearray(content), dtype=dtype)
    info = TensorInfo("x", "x", name_of(dtype), (len(tensor),), Path(), 0, len(content))
    found, step = Finite(info), values * dtype.itemsize
    for start in range(0, len(content), step):
        found.add(memoryview(content)[start : start + step])
    assert found.nans == int(tensor.isnan().sum())
    assert found.infinities == int(tensor.isinf().sum())
    places = torch.nonzero(~tensor.isfinite()).flatten().tolist()
    assert found.first == (places[0] if places else -1)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_error_says_which_tensor_where_and_how_many(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    """Beyond the first chunk too, by its index; oracle: the place that was written to."""
    wrong = torch.zeros(3, 700, 400).to(dtype)
    wrong[2, 699, 1] = value
    wrong[2, 699, 3] = float("nan")
    odd = torch.full((2,), float("nan"))
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    save_file({"good": torch.ones(4), "up": wrong, "zoo": odd}, path)
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.digest(["good"])
        for read in (checkpoint.digest, checkpoint.check_finite):
            with pytest.raises(CheckpointError) as caught:
                read(["zoo", "up", "good"])
            count = "2 NaN" if value != value else "1 NaN and 1 infinite"
            assert f"`up` has values that are no numbers: {count}" in caught.value.message
            assert "the first at [2, 699, 1]" in caught.value.message
            assert "so have 1 more tensors: zoo" in caught.value.message
            assert str(path) in caught.value.message


def test_integers_are_never_taken_for_floats(tmp_path: Path) -> None:
    """Packed weights may have any bits; oracle: all bits set are NaN in every float."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"q": torch.full((8,), -1, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.check_finite(["q"])
