"""Tiles against transformers' image processor, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from axcore_plugins_smolvlm2 import preprocess, vision
from axcore_plugins_smolvlm2.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

import axcore
from axcore import CheckpointError, Options, UnsupportedProfile
from axcore.testing import check_family

from .conftest import CARDS, Family, photograph, processor

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Registry

sides = st.integers(1, 300)


@settings(max_examples=40, deadline=None)
@given(height=sides, width=sides, most=st.integers(1, 4), side=st.sampled_from([32, 42]))
def test_tiles_are_the_processors(height: int, width: int, most: int, side: int) -> None:
    """Pixels, rows and columns, for any size. Oracle: transformers' processor."""
    image = photograph(height, width)
    cut = preprocess.cut(image, side, most)
    made = processor(side, most)([[image]], return_tensors="np", return_row_col_info=True)
    assert [[cut.rows]] == made["rows"]
    assert [[cut.columns]] == made["cols"]
    tiles = np.concatenate(
        [
            preprocess.CALIBRATION.graph_input(sample["pixel_values"])
            for sample in preprocess.samples(cut.images)
        ]
    )
    np.testing.assert_allclose(tiles, made["pixel_values"][0], atol=1e-5)


@pytest.mark.parametrize("name", CARDS)
def test_positions_are_upstreams(name: str) -> None:
    """For many sizes, where float32 decides too. Oracle: transformers' embeddings."""
    config: Any = axcore.parse(Config, CARDS[name].published.config).vision_config
    module: Any = SmolVLMVisionEmbeddings(replace(config, hidden_size=4, num_attention_heads=1))
    torch.nn.init.zeros_(module.patch_embedding.weight)
    torch.nn.init.zeros_(module.patch_embedding.bias)
    table = torch.arange(config.side**2).float()
    module.position_embedding.weight.data = table[:, None].repeat(1, 4)
    for count in (*range(1, config.side, 5), config.side):
        pixels = torch.zeros(1, 3, count * config.patch_size, count * config.patch_size)
        mask = torch.ones(1, count, count, dtype=torch.bool)
        with torch.no_grad():
            ids = module(pixels, mask)[0, :, 0].reshape(count, count).int()
        picked = torch.tensor(vision.buckets(count, config.side))
        assert torch.equal(ids, (picked[:, None] * config.side + picked).int())


def test_hooks_keep_their_promises(registry: Registry, tmp_path: Path) -> None:
    """The laws of every family. Oracle: the core's conformance kit."""
    check_family("smolvlm2", out=tmp_path, model="smolvlm2-256m", registry=registry, build=False)


@pytest.mark.parametrize(
    ("height", "width", "nearest"),
    [(500, 500, "512x512"), (512, 256, "384x384"), (576, 576, "512x512"), (16, 16, "64x64")],
)
def test_sizes_off_the_grid_are_refused(
    family: Family, registry: Registry, height: int, width: int, nearest: str
) -> None:
    """No whole tokens, not square, or larger than the positions. Oracle: the hint fits."""
    options = Options(height=height, width=width)
    with pytest.raises(UnsupportedProfile) as caught:
        axcore.plan(str(family.checkpoint), options=options, registry=registry)
    assert nearest in (caught.value.hint or "")
    side = int(nearest.partition("x")[0])
    options = Options(height=side, width=side)
    assert axcore.plan(str(family.checkpoint), options=options, registry=registry).rows


def with_settings(family: Family, out: Path, **changes: Any) -> str:
    """Link a checkpoint, with other settings of the image processor."""
    for path in family.checkpoint.iterdir():
        (out / path.name).symlink_to(path)
    name = "preprocessor_config.json"
    settings_ = {**json.loads((family.checkpoint / name).read_text()), **changes}
    (out / name).unlink()
    (out / name).write_text(json.dumps(settings_))
    return str(out)


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({"max_image_size": {"longest_edge": 384}, "size": {"longest_edge": 768}}, "of 384 px"),
        ({"size": {"longest_edge": 1000}}, "size.longest_edge: 1000 is no multiple"),
        ({"image_mean": [0.4, 0.5, 0.5]}, "image_mean.0: 0.4 is not 0.5"),
        ({"resample": 3}, "resample: 3 is not one of 1"),
        ({"size": [512]}, "size: "),
    ],
)
def test_a_processor_of_another_model_is_refused(
    family: Family, registry: Registry, tmp_path: Path, changes: dict[str, Any], evidence: str
) -> None:
    """Oracle: the field that was changed."""
    with pytest.raises(CheckpointError, match=evidence):
        axcore.plan(with_settings(family, tmp_path, **changes), registry=registry)


@pytest.mark.parametrize(("split", "runs"), [(True, 5), (False, 1)])
def test_the_processor_says_how_images_are_cut(
    family: Family, registry: Registry, tmp_path: Path, split: bool, runs: int
) -> None:
    """Unless the user does. Oracle: what the note counts."""
    folder = with_settings(family, tmp_path, do_image_splitting=split)
    for tiles, counted in (("auto", runs), ("3", 10)):
        options = Options(choices={"tiles": tiles})
        notes = axcore.plan(folder, options=options, registry=registry).notes
        assert any(f"up to {counted} tiles" in note for note in notes)


KEY = "model.connector.modality_projection.proj.weight"


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        (lambda tensors: tensors.pop(KEY), "modality_projection"),
        (lambda tensors: tensors.update({KEY: tensors[KEY][:-1].clone()}), "modality_projection"),
        (lambda tensors: tensors.update(foreign=tensors[KEY].clone()), "foreign"),
        (None, "model.safetensors"),
    ],
    ids=["missing", "narrow", "foreign", "truncated"],
)
def test_another_checkpoint_is_refused(
    family: Family, registry: Registry, tmp_path: Path, change: Any, evidence: str
) -> None:
    """A tensor is missing, of another shape, or too many; the file ends early. Oracle: its name."""
    for path in family.checkpoint.iterdir():
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
