"""Positions of the towers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from axcore import Weight, gridded, interpolation, selection
from axcore_plugins_minicpmv import preprocess

SIDE = 70


def upstream_ids(rows: int, columns: int) -> torch.Tensor:
    """The oracle: the published arithmetic, with the sizes in a tensor as there."""
    sizes = torch.tensor([[rows, columns]], dtype=torch.int32)
    boundaries = torch.arange(1 / SIDE, 1.0, 1 / SIDE)
    down, across = (
        torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / count), boundaries, right=True)
        for count in sizes[0]
    )
    return (down[:, None] * SIDE + across).flatten()


@pytest.mark.parametrize("count", range(1, SIDE + 1))
def test_ids_are_upstreams(count: int) -> None:
    """Row by row, int32, where float32 decides too: patches at a boundary may be one lower.

    Oracle: torch.bucketize as the published code calls it.
    """
    for rows, columns in ((count, 1), (1, count), (count, 25)):
        ours = preprocess.position_ids(rows, columns, SIDE)
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, upstream_ids(rows, columns)[None].numpy())


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (25, 50), (1, 70)])
def test_picked_positions_are_those_of_the_ids(rows: int, columns: int) -> None:
    """The constant of the plain layout is the lookup of the strip layout, to the bit.

    Oracle: an embedding lookup by the ids that upstream computes.
    """
    table = torch.randn(SIDE**2, 8).bfloat16()
    down, across = (selection(preprocess.buckets(n, SIDE), SIDE) for n in (rows, columns))
    placed = gridded(Weight("table"), SIDE, down, across).resolve(lambda _: table)
    assert torch.equal(placed, F.embedding(upstream_ids(rows, columns), table.float()))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), side=st.integers(2, 27))
def test_interpolated_positions_are_those_of_torch(rows: int, columns: int, side: int) -> None:
    """Antialiased bicubic, enlarging and reducing, square and not.

    Oracle: F.interpolate on the whole table, as timm calls it.
    """
    table = torch.randn(1, side * side, 6, generator=torch.Generator().manual_seed(side))
    down, across = (interpolation(n, side, antialias=True) for n in (rows, columns))
    placed = gridded(Weight("table"), side, down, across).resolve(lambda _: table)
    square = table.reshape(1, side, side, 6).permute(0, 3, 1, 2)
    made = F.interpolate(square, size=(rows, columns), mode="bicubic", antialias=True)
    torch.testing.assert_close(placed, made.flatten(2)[0].T, atol=1e-5, rtol=1e-5)
