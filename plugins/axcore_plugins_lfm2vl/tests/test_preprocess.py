"""Tiles, the tower at other sizes, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import axcore_plugins_lfm2vl as plugin
import numpy as np
import pytest
import torch
from axcore_plugins_lfm2vl import preprocess
from axcore_plugins_lfm2vl.config import Processor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import axcore
from axcore import CheckpointError, Options, Request, Silent, UnsupportedProfile
from axcore.pipeline.job import open_job
from axcore.testing import check_family, run_stages

from .conftest import HEIGHT, WIDTH, photograph, pixels

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Registry

sides = st.integers(1, 3000)


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, most=st.integers(2, 10))
def test_the_grid_is_the_one_of_nearest_proportions(width: int, height: int, most: int) -> None:
    """Of 2 to `most` tiles of 512 px, where the image has more than twice the area of one.

    Oracle: the published rule, over all grids at once; of several equally near, the largest of
    which half is filled, else the smallest.
    """
    image = Image.new("RGB", (width, height))
    cut = preprocess.cut(image, (512, 512), Processor(max_tiles=most))
    rounded = [max(16, round(side / 32) * 32) for side in (width, height)]
    if rounded[0] * rounded[1] <= 2 * 512 * 512:
        assert (cut.columns, cut.rows, len(cut.images)) == (0, 0, 1)
        return
    grids = [(c, r) for c in range(1, 11) for r in range(1, 11) if 2 <= c * r <= most]
    away = {grid: abs(width / height - grid[0] / grid[1]) for grid in grids}
    nearest = sorted(
        (grid for grid in grids if away[grid] == min(away.values())), key=lambda g: (g[0] * g[1], g)
    )
    roomy = [g for g in nearest[1:] if width * height > 0.5 * 512 * 512 * g[0] * g[1]]
    assert (cut.columns, cut.rows) == (roomy or nearest)[-1 if roomy else 0]
    assert len(cut.images) == cut.columns * cut.rows + 1


def test_tiles_are_cells_and_the_whole() -> None:
    """Row by row from the resized image, then the image as one tile. Oracle: Pillow."""
    image = photograph(130, 200)
    cut = preprocess.cut(image, (WIDTH, HEIGHT), Processor())
    assert (cut.columns, cut.rows) == (2, 2)
    canvas = np.asarray(image.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BILINEAR))
    cells = [canvas[y : y + HEIGHT, x : x + WIDTH] for y in (0, HEIGHT) for x in (0, WIDTH)]
    whole = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    for tile, expected in zip(cut.images, [*cells, whole], strict=True):
        np.testing.assert_array_equal(np.asarray(tile), expected)
    assert len(preprocess.cut(image, (WIDTH, HEIGHT), Processor(use_thumbnail=False)).images) == 4
    whole_alone = Processor(do_image_splitting=False)
    assert len(preprocess.cut(image, (WIDTH, HEIGHT), whole_alone).images) == 1


@pytest.mark.parametrize(
    ("height", "width"), [(512, 512), (256, 256), (32, 512), (416, 608), (96, 64)]
)
def test_the_tower_computes_what_the_model_class_does(
    model: Any, checkpoint: Path, registry: Registry, height: int, width: int
) -> None:
    """At the size of the stored positions, larger and smaller, square and not.

    Oracle: transformers' get_image_features, which interpolates for each image.
    """
    request = Request.of(str(checkpoint), options=Options(height=height, width=width))
    job = open_job(request, registry, Silent())
    (component,) = plugin.export_vision(job)
    tile = np.asarray(photograph(height, width))
    given_ = torch.from_numpy(preprocess.CALIBRATION.graph_input(tile))
    with job.checkpoint as opened, torch.no_grad():
        (ours,) = run_stages(component.stages, opened.tensor, given_)
        (expected,) = model.get_image_features(**pixels([tile])).pooler_output
    assert ours.shape == component.outputs[0].shape == (1, *expected.shape)
    torch.testing.assert_close(ours[0], expected, atol=5e-5, rtol=1e-4)


def test_hooks_keep_their_promises(registry: Registry, tmp_path: Path) -> None:
    """The laws of every family. Oracle: the core's conformance kit."""
    check_family("lfm2vl", out=tmp_path, model="lfm2-vl-1.6b", registry=registry, build=False)


@pytest.mark.parametrize(
    ("height", "width"), [(500, 512), (512, 1024), (10, 512), (16, 16), (1000, 1000)]
)
def test_sizes_off_the_grid_are_refused(
    checkpoint: Path, registry: Registry, height: int, width: int
) -> None:
    """No whole tokens, or more than 256. Oracle: what the hint says fits."""
    options = Options(height=height, width=width)
    with pytest.raises(UnsupportedProfile) as caught:
        axcore.plan(str(checkpoint), options=options, registry=registry)
    fits = [int(side) for side in (caught.value.hint or "").rpartition(" ")[2].split("x")]
    options = Options(height=fits[0], width=fits[1])
    assert 0 < (axcore.plan(str(checkpoint), options=options, registry=registry).rows or 0) <= 256


def with_settings(checkpoint: Path, out: Path, **changes: Any) -> str:
    """Link a checkpoint, with other settings where newer files have them."""
    for path in checkpoint.iterdir():
        (out / path.name).symlink_to(path)
    said = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (out / "processor_config.json").write_text(json.dumps({"image_processor": {**said, **changes}}))
    return str(out)


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({"encoder_patch_size": 14}, "encoder_patch_size: 14 is not one of 16"),
        ({"downsample_factor": 4}, "downsample_factor: 4 is not one of 2"),
        ({"image_std": [1.0, 1.0, 1.0]}, "image_std.0: 1.0 is not 0.5"),
        ({"max_tiles": 12}, "max_tiles: 12 is not 2 to 10"),
        ({"resample": 3}, "resample: 3 is not one of 2"),
    ],
)
def test_a_processor_of_another_model_is_refused(
    checkpoint: Path, registry: Registry, tmp_path: Path, changes: dict[str, Any], evidence: str
) -> None:
    """Oracle: the field that was changed."""
    with pytest.raises(CheckpointError, match=evidence):
        axcore.plan(with_settings(checkpoint, tmp_path, **changes), registry=registry)


@pytest.mark.parametrize(
    ("changes", "choice", "runs"),
    [
        ({}, "auto", 11),
        ({"max_tiles": 4, "use_thumbnail": False}, "auto", 4),
        ({"do_image_splitting": False}, "auto", 1),
        ({"do_image_splitting": False}, "4", 5),
        ({}, "1", 1),
    ],
)
def test_the_processor_says_how_images_are_cut(
    checkpoint: Path,
    registry: Registry,
    tmp_path: Path,
    changes: dict[str, Any],
    choice: str,
    runs: int,
) -> None:
    """Unless the user does. Oracle: what the note counts."""
    options = replace(Options(), choices={"tiles": choice})
    planned = axcore.plan(
        with_settings(checkpoint, tmp_path, **changes), options=options, registry=registry
    )
    assert any(f"up to {runs} tiles" in note for note in planned.notes)
    assert any("2 of 3 layers" in note and "convolutions" in note for note in planned.notes)


KEY = "model.multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        (lambda tensors: tensors.pop(KEY), "linear_1"),
        (lambda tensors: tensors.update({KEY: tensors[KEY][:-1].clone()}), "linear_1"),
        (lambda tensors: tensors.update(foreign=tensors[KEY].clone()), "foreign"),
        (None, "model.safetensors"),
    ],
    ids=["missing", "narrow", "foreign", "truncated"],
)
def test_another_checkpoint_is_refused(
    checkpoint: Path, registry: Registry, tmp_path: Path, change: Any, evidence: str
) -> None:
    """A tensor is missing, of another shape, or too many; the file ends early. Oracle: its name."""
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    weights = tmp_path / "model.safetensors"
    tensors, content = load_file(weights), weights.read_bytes()
    weights.unlink()
    if change is None:
        weights.write_bytes(content[:-100])
    else:
        change(tensors)
        save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=evidence):
        axcore.plan(str(tmp_path), registry=registry)
