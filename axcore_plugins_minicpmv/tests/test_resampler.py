"""The resampler against torch's own attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axcore import Stage
from axcore_plugins_minicpmv import layouts
from axcore_plugins_minicpmv.resampler import Resampler, keys, sincos

WIDTH, VISION, QUERIES = 256, 40, 9
GRID = (5, 3)


def written_out_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """The oracle: one number at a time, in double precision."""
    table = np.zeros((rows * columns, width))
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for half, place in ((0, column), (1, row)):
                for k in range(quarter):
                    angle = place * 10000 ** (-k / quarter)
                    start = half * 2 * quarter + k
                    table[row * columns + column, start] = math.sin(angle)
                    table[row * columns + column, start + quarter] = math.cos(angle)
    return table


def weights(*, placed_queries: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = layouts.resampler(WIDTH, VISION, QUERIES)
    if placed_queries:
        shapes["resampler.pos_embed"] = (QUERIES, WIDTH)
    return {k: torch.randn(s, generator=generator) * s[-1] ** -0.5 for k, s in shapes.items()}


def reference(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The oracle: the published flow around torch.nn.MultiheadAttention."""
    w = {key.removeprefix("resampler."): value for key, value in w.items()}
    attention = nn.MultiheadAttention(WIDTH, WIDTH // 128, batch_first=True)
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    attention.load_state_dict({name: w[f"attn.{name}"] for name in names})

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    values = norm("ln_kv", x @ w["kv_proj.weight"].T)
    queries = norm("ln_q", w["query"]) + w.get("pos_embed", 0)
    places = torch.from_numpy(written_out_positions(*GRID, WIDTH)).float()
    seen, _ = attention(queries[None], values + places, values, need_weights=False)
    return norm("ln_post", seen) @ w["proj"]


@pytest.mark.parametrize("placed_queries", [False, True], ids=["v4", "v2"])
def test_tokens_are_those_of_torchs_attention(placed_queries: bool) -> None:
    """Positions on keys alone (and on queries where stored), `proj` as it is, a grid of 5 x 3.

    Oracle: torch.nn.MultiheadAttention with positions computed one by one.
    """
    module = Resampler(WIDTH, VISION, QUERIES, GRID, placed_queries=placed_queries)
    stored = weights(placed_queries=placed_queries)
    stage = Stage("resampler", module, keys(module))
    origins = stage.weights()
    assert {key for origin in origins.values() for key in origin.keys()} == stored.keys()
    bound = {name: origin.resolve(stored.__getitem__) for name, origin in origins.items()}
    x = torch.randn(1, math.prod(GRID), VISION, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = torch.func.functional_call(module, bound, (x,))
        expected = reference(x, stored)
    assert made.shape == (1, QUERIES, WIDTH)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [2304, 2560])
def test_positions_at_published_widths(width: int) -> None:
    """Column first, sine before cosine. Oracle: loops over single numbers, in double."""
    made = sincos(3, 70, width).double().numpy()
    np.testing.assert_allclose(made, written_out_positions(3, 70, width), atol=2e-5)
