"""What older operator sets lack, written out. Oracle: torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from axcore.graph.older import Older, layer_norm


@given(data=st.data(), bias=st.booleans(), weight=st.booleans())
def test_layer_norm(data: st.DataObject, bias: bool, weight: bool) -> None:
    """Over one or two axes, with and without weight and bias. Oracle: torch's own function."""
    shape = tuple(data.draw(st.lists(st.integers(2, 6), min_size=2, max_size=4)))
    axes = shape[-data.draw(st.integers(1, 2)) :]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = 5 + 3 * torch.randn(shape, generator=generator)
    scale = torch.randn(axes, generator=generator) if weight else None
    shift = torch.randn(axes, generator=generator) if bias else None
    made, expected = (norm(x, axes, scale, shift, 1e-3) for norm in (layer_norm, F.layer_norm))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_does_not_overflow() -> None:
    """Squares of large float16 values exceed its range. Oracle: torch's own function."""
    x = torch.tensor([[300.0, -300.0, 100.0, 60.0]], dtype=torch.float16)
    torch.testing.assert_close(layer_norm(x, (4,)), F.layer_norm(x, (4,)), atol=2e-3, rtol=2e-3)
    assert layer_norm(x, (4,)).dtype == torch.float16


@pytest.mark.parametrize(("opset", "written_out"), [(16, True), (17, False)])
def test_only_where_the_set_lacks_it(opset: int, written_out: bool) -> None:
    """LayerNormalization came with 17. Oracle: onnx's changelog.

    Also when reached through the module, as models do.
    """
    norm, x = nn.LayerNorm(3), torch.randn(2, 3)
    with torch.profiler.profile() as profile, Older(opset):
        norm(x)
    used = {event.name for event in profile.events()}
    assert ("aten::layer_norm" not in used) == written_out
