"""Our tower and projector against transformers' own classes, in both layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import axcore_plugins_internvl as plugin
from axcore import Weight, pixel_shuffle
from axcore.graph.attention import explicit
from axcore.testing import run_stages
from axcore_plugins_internvl import vision

from .conftest import MODELS, Family, photograph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Registry

LAYOUTS = ("remote", "native")
cells = st.integers(1, 8).map(lambda count: 28 * count)


def expected_tokens(family: Family, pixels: Tensor) -> Tensor:
    """The oracle. transformers' whole path takes square tiles alone, its parts take any."""
    model, (height, width) = family.model.model, pixels.shape[-2:]
    with torch.no_grad():
        if height == width:
            tokens: Tensor = model.get_image_features(
                pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
            ).pooler_output
            return tokens
        patches = model.vision_tower(pixels).last_hidden_state[:, 1:]
        grid = patches.reshape(len(pixels), height // 14, width // 14, -1)
        shuffled = model.pixel_shuffle(grid, scale_factor=0.5).flatten(1, 2)
        return model.multi_modal_projector(shuffled)  # type: ignore[no-any-return]


def compare(
    family: Family, registry: Registry, layout: str, options: Mapping[str, Any], patched: bool
) -> None:
    job = family.job(layout, registry, **options)
    (component,) = plugin.export_vision(job)
    (given,), (promised,) = component.inputs, component.outputs
    pixels = torch.randn(given.shape, generator=torch.Generator().manual_seed(3))
    stages = map(explicit, component.stages) if patched else component.stages
    with job.checkpoint as checkpoint:
        (ours,) = run_stages(stages, checkpoint.tensor, pixels)
    assert ours.shape == promised.shape
    torch.testing.assert_close(ours, expected_tokens(family, pixels), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_chain_computes_what_the_model_class_does(
    families: dict[str, Family], registry: Registry, name: str, layout: str, patched: bool
) -> None:
    """Tokens of a tile of 448x448 px, as published. Oracle: transformers' get_image_features."""
    compare(families[name], registry, layout, {}, patched)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("height", "width", "tiles"),
    [(448, 448, "2"), (224, 224, "1"), (560, 560, "1"), (112, 196, "3"), (896, 224, "1")],
)
def test_other_sizes_and_several_tiles(
    family: Family, registry: Registry, layout: str, height: int, width: int, tiles: str
) -> None:
    """Interpolated positions, also where the number of patches is the stored one.

    Oracle: transformers' get_image_features, or its parts where a tile is not square.
    """
    options = {"height": height, "width": width, "choices": {"tiles": tiles}}
    compare(family, registry, layout, options, patched=True)


@settings(max_examples=12, deadline=None)
@given(height=cells, width=cells, layout=st.sampled_from(LAYOUTS), tiles=st.integers(1, 3))
def test_any_size_that_fits(
    families: dict[str, Family],
    registry: Registry,
    height: int,
    width: int,
    layout: str,
    tiles: int,
) -> None:
    """Tiles of 28 to 224 px, square and not. Oracle: transformers."""
    options = {"height": height, "width": width, "choices": {"tiles": str(tiles)}}
    compare(families[MODELS[0]], registry, layout, options, patched=False)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), side=st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_positions_are_interpolated_as_upstream_does(rows: int, columns: int, side: int) -> None:
    """Two linear maps equal the bicubic resize. Oracle: torch's own, in two dimensions."""
    table = torch.randn(1, 1 + side**2, 3, generator=torch.Generator().manual_seed(0))
    made = vision.positions(Weight("table"), side, (rows, columns)).resolve(lambda _: table)
    square = table[:, 1:].reshape(1, side, side, 3).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
    torch.testing.assert_close(made[:, 1:], resized.permute(0, 2, 3, 1).reshape(1, -1, 3))
    assert torch.equal(made[:, :1], table[:, :1])


def test_the_stored_positions_are_taken_as_they_are() -> None:
    """At the size they are for nothing is computed. Oracle: the same weight."""
    assert vision.positions(Weight("table"), 32, (32, 32)) == Weight("table")


def test_a_token_joins_four_patches_in_the_documented_order() -> None:
    """Rows and channels of the pixel shuffle on a grid that is not square. Oracle: by hand.

    Tile t, patch p holds the value 100 t + p; the grid has 2 rows of 4.
    """
    patches = (100 * torch.arange(2)[:, None] + torch.arange(8))[..., None].float()
    tokens = pixel_shuffle(patches, (2, 4), 2)
    assert tokens[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert tokens[1].tolist() == [[100, 101, 104, 105], [102, 103, 106, 107]]


def test_one_trace_per_kind(family: Family, registry: Registry) -> None:
    """Three kinds, whatever the depth. Oracle: the small config's three layers."""
    (component,) = plugin.export_vision(family.job("remote", registry))
    assert [stage.kind for stage in component.stages] == [
        "embeddings",
        *["block"] * 3,
        "projector",
    ]


@pytest.mark.parametrize("tiles", ["1", "3"])
def test_samples_fit_the_port(family: Family, registry: Registry, tiles: str) -> None:
    """What the graph receives for an image. Oracle: the port."""
    job = family.job("remote", registry, height=84, width=112, choices={"tiles": tiles})
    (component,) = plugin.export_vision(job)
    assert component.preprocess is not None
    (sample,) = component.preprocess([photograph(200, 300)])
    graph_input = component.calibration.graph_input(sample["image"])
    assert graph_input.shape == component.inputs[0].shape
    assert graph_input.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_its_type_and_its_meaning(
    family: Family, registry: Registry, dtype: torch.dtype
) -> None:
    """A chain in low precision stays in it and near float32. Oracle: our own float32 chain."""
    job = family.job("remote", registry, height=84, width=112)
    (component,) = plugin.export_vision(job)
    pixels = torch.randn(component.inputs[0].shape, generator=torch.Generator().manual_seed(1))
    with job.checkpoint as checkpoint:
        exact, rough = (
            run_stages(component.stages, checkpoint.tensor, given)[0]
            for given in (pixels, pixels.to(dtype))
        )
    assert rough.dtype == dtype
    assert F.cosine_similarity(rough.float(), exact, dim=-1).min() > 0.99
