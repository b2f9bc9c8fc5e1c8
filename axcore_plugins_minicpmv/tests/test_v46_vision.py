"""The tower of MiniCPM-V-4.6 against the model's own class."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MiniCPMV4_6Config, MiniCPMV4_6Model
from transformers.vision_utils import get_vision_nearest_position_ids

from axcore.testing import run_stages
from axcore_plugins_minicpmv import v46, v46_vision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from axcore import Stage

# Grids of patches. With 50 rows, rounding decides on the positions.
GRIDS_16X = [(32, 32), (4, 4), (4, 12), (20, 8), (52, 4)]
GRIDS_4X = [*GRIDS_16X, (2, 2), (6, 10), (50, 2)]
grids = st.tuples(st.integers(1, 6), st.integers(1, 6))

CARD = v46.card()
TINY = CARD.published.tiny_config


@pytest.fixture(scope="module")
def upstream() -> Any:
    """The oracle: transformers' own class, every parameter random (norms and biases too)."""
    model: Any = MiniCPMV4_6Model(MiniCPMV4_6Config(**TINY))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return model


def run(stages: Iterable[Stage], weights: Mapping[str, Tensor], state: Tensor) -> Tensor:
    """Run a chain with the weights its stages ask for, by key."""
    (made,) = run_stages(stages, lambda key: weights[key.removeprefix("model.")], state)
    return made


def strip(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.randn(1, 3, 14, 14 * rows * columns, generator=generator)


def compare(upstream: Any, rows: int, columns: int, mode: str) -> None:
    """Feed both towers the same strip and compare their tokens."""
    pixels = strip(rows, columns)
    chain = v46_vision.stages(TINY, rows, columns, early_merge=mode == "16x")
    with torch.no_grad():
        ours = run(chain, upstream.state_dict(), pixels)
        (theirs,) = upstream.get_image_features(
            pixels, torch.tensor([[rows, columns]]), downsample_mode=mode
        ).pooler_output
    torch.testing.assert_close(ours[0], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "grid"),
    [*itertools.product(["16x"], GRIDS_16X), *itertools.product(["4x"], GRIDS_4X)],
    ids=str,
)
def test_the_chain_computes_what_the_model_class_does(
    upstream: Any, mode: str, grid: tuple[int, int]
) -> None:
    """Tokens of an image, square and not, in both modes. Oracle: transformers."""
    compare(upstream, *grid, mode)


@settings(max_examples=20, deadline=None)
@given(cells=grids, mode=st.sampled_from(v46.DOWNSAMPLE.values))
def test_any_grid_that_fits(upstream: Any, cells: tuple[int, int], mode: str) -> None:
    """Tokens of images of one to six cells a side. Oracle: transformers."""
    side = 4 if mode == "16x" else 2
    compare(upstream, side * cells[0], side * cells[1], mode)


def test_positions_are_those_of_the_model_class() -> None:
    """Rows and columns of the table for every length of a side. Oracle: transformers' function."""
    for count in range(1, 71):
        ids = get_vision_nearest_position_ids(torch.tensor([[count, 1]]), 70)
        assert [70 * row for row in v46_vision.buckets(count, 70)] == ids.tolist()
        ids = get_vision_nearest_position_ids(torch.tensor([[1, count]]), 70)
        assert v46_vision.buckets(count, 70) == ids.tolist()


def square(row: int, column: int, edge: int) -> list[tuple[int, int]]:
    """List the patches of a square, quarter by quarter."""
    if edge == 1:
        return [(row, column)]
    half = edge // 2
    quarters = [(row + down, column + across) for down in (0, half) for across in (0, half)]
    return [patch for quarter in quarters for patch in square(*quarter, half)]


@given(down=st.integers(1, 5), across=st.integers(1, 5), merges=st.integers(1, 2))
def test_the_patches_of_a_cell_follow_one_another(down: int, across: int, merges: int) -> None:
    """Squares of the image row by row, and their quarters likewise. Oracle: recursion."""
    side = 2**merges
    rows, columns = side * down, side * across
    expected = [
        row * columns + column
        for top in range(0, rows, side)
        for left in range(0, columns, side)
        for row, column in square(top, left, side)
    ]
    assert v46_vision.cell_order(rows, columns, merges).tolist() == expected


def test_one_trace_per_kind() -> None:
    """The merger follows the layer that the config names, in one mode only. Oracle: the config."""
    kinds = {
        merged: [s.kind for s in v46_vision.stages(TINY, 4, 4, early_merge=merged)]
        for merged in (True, False)
    }
    before, after = ["embeddings", "layer", "layer"], ["layer", "layer", "post_layernorm", "merger"]
    assert kinds == {True: [*before, "vit_merger", *after], False: before + after}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_its_type_and_its_meaning(upstream: Any, dtype: torch.dtype) -> None:
    """A chain in low precision stays in it and near float32. Oracle: our own float32 chain."""
    chain = v46_vision.stages(TINY, 8, 4, early_merge=True)
    given = strip(8, 4)
    exact, rough = (run(chain, upstream.state_dict(), x) for x in (given, given.to(dtype)))
    assert rough.dtype == dtype
    assert torch.nn.functional.cosine_similarity(rough.float(), exact, dim=-1).min() > 0.99
