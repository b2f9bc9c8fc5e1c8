"""What a `Weight` does to a tensor while it is read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axcore import Weight

SHAPE = (4, 3, 5)


@given(axis=st.integers(0, 2), rows=st.integers(1, 6))
def test_a_projected_axis_is_multiplied_by_the_matrix(axis: int, rows: int) -> None:
    """Any axis, any new length, and the shape alone on the meta device. Oracle: torch.einsum."""
    value = torch.randn(SHAPE, generator=torch.Generator().manual_seed(axis))
    matrix = torch.randn(rows, SHAPE[axis], generator=torch.Generator().manual_seed(rows))
    weight = Weight("w").project(axis, matrix.tolist())
    old = "abc"
    new = old.replace(old[axis], "n")
    made = weight.resolve(lambda _: value)
    torch.testing.assert_close(made, torch.einsum(f"n{old[axis]},{old}->{new}", matrix, value))
    assert weight.resolve(lambda _: value.to("meta")).shape == made.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_picking_rows_is_exact(dtype: torch.dtype) -> None:
    """A matrix of ones and zeros picks and repeats without rounding. Oracle: indexing."""
    table, picked = torch.randn(4, 9).to(dtype), [3, 3, 0]
    matrix = [[float(k == index) for k in range(4)] for index in picked]
    made = Weight("w").project(0, matrix).resolve(lambda _: table)
    assert torch.equal(made, table[picked].float())


def test_equal_projections_are_equal_weights() -> None:
    """Stages compare their weights, and hash them. Oracle: the definition of both."""
    one, other = (Weight("w").project(0, rows) for rows in ([[1.0, 0.0]], ((1.0, 0.0),)))
    assert one == other
    assert hash(one) == hash(other)
