"""MiniCPM-V-4.6 through the core, on a fabricated checkpoint; sizes, images and arguments."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

from axcore import Options, UnsupportedProfile, convert, plan
from axcore.checkpoint.fabricate import fabricate
from axcore.testing import check_prompt
from axcore_plugins_minicpmv import preprocess, v46
from axcore_plugins_minicpmv.slicing import slicing

from .conftest import photograph

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Registry
    from axcore.pipeline.plan import Plan

MODEL = "minicpm-v-4.6"
CELL_PX = {"16x": 56, "4x": 28}
CARD = v46.card()
PROCESSOR = MiniCPMV4_6ImageProcessorPil(**CARD.published.files["preprocessor_config.json"])


def planned(registry: Registry, **options: Any) -> Plan:
    return plan(MODEL, weights="random-tiny", options=Options(**options), registry=registry)


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size", "strip", "tokens"),
    [
        ("16x", (448, 448), 14336, 64),
        ("16x", (448, 560), 17920, 80),
        ("4x", (448, 448), 14336, 256),
        ("4x", (420, 476), 14280, 255),
    ],
)
def test_ports_follow_from_size_and_mode(
    registry: Registry, mode: str, size: tuple[int, int], strip: int, tokens: int
) -> None:
    """Published names and shapes. Oracle: by hand, 14 px of strip a patch, 56 or 28 px a cell."""
    height, width = size
    made = planned(registry, height=height, width=width, choices={"downsample": mode})
    (component,) = made.components
    (given,), (promised,) = component.inputs, component.outputs
    assert (given.name, given.shape) == ("pixel_values", (1, 3, 14, strip))
    assert (promised.name, promised.shape) == ("image_features", (1, tokens, 32))
    names = {file.name for file in made.files}
    label = "448" if height == width else f"{height}x{width}"
    assert f"minicpmv4_6_vision_{label}.onnx" in names


@pytest.mark.parametrize(
    ("mode", "size", "nearest"),
    [
        ("16x", (448, 476), "448x448"),
        ("4x", (450, 490), "448x504"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(
    registry: Registry, mode: str, size: tuple[int, int], nearest: str
) -> None:
    """The error quotes the size and names what fits. Oracle: worked out by hand."""
    height, width = size
    with pytest.raises(UnsupportedProfile, match=f"{height}x{width} px") as caught:
        planned(registry, height=height, width=width, choices={"downsample": mode})
    assert caught.value.hint == f"nearest that fits: {nearest}"


# Images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "cell_px"), CELL_PX.items())
@pytest.mark.parametrize("size", [(400, 300), (448, 448), (200, 90)], ids=str)
def test_a_strip_is_what_the_processor_makes(
    mode: str, cell_px: int, size: tuple[int, int]
) -> None:
    """Pixels, their order and range, at the size the processor picks. Oracle: transformers."""
    image = photograph(*size)
    made = PROCESSOR(image, slice_mode=False, downsample_mode=mode, return_tensors="np")
    rows, columns = made["target_sizes"][0]
    (ours,) = preprocess.samples(image, 14 * rows, 14 * columns, "stretch", cell_px)
    np.testing.assert_allclose(preprocess.strip(ours), made["pixel_values"], atol=1e-6)


@pytest.mark.parametrize(("mode", "cell_px"), CELL_PX.items())
def test_slices_are_what_the_processor_makes(mode: str, cell_px: int) -> None:
    """Pieces and their order where every piece has the static size. Oracle: transformers."""
    image = photograph(1344, 896)
    made = PROCESSOR(image, downsample_mode=mode, return_tensors="np")
    sizes = made["target_sizes"].tolist()
    ours = list(preprocess.samples(image, 448, 448, "slice", cell_px))
    assert len(ours) == len(sizes) == 7
    assert sizes[1:] == [[32, 32]] * 6
    cells = np.concatenate([preprocess.strip(pixels) for pixels in ours[1:]], axis=-1)
    source = sizes[0][0] * sizes[0][1] * 14
    np.testing.assert_allclose(cells, made["pixel_values"][..., source:], atol=1e-6)


@given(
    width=st.integers(20, 4000), height=st.integers(20, 4000), mode=st.sampled_from(list(CELL_PX))
)
def test_images_are_cut_as_the_processor_does(width: int, height: int, mode: str) -> None:
    """Grid and sizes of all pieces. Oracle: the methods of transformers' processor."""
    ours = slicing(width, height, multiple=CELL_PX[mode])
    size, rule = (height, width), {"scale_resolution": 448, "patch_size": 14}
    grid = PROCESSOR.get_sliced_grid(size, 9, 448)
    source = PROCESSOR.find_best_resize(
        size, **rule, downsample_mode=mode, allow_upscale=grid is None
    )
    assert ours.source == source[::-1]
    assert [ours.rows, ours.columns] == (grid or [0, 0])
    if grid is not None:
        refined = PROCESSOR.get_refine_size(
            size, grid, **rule, downsample_mode=mode, allow_upscale=True
        )
        assert ours.cell == (refined[1] // ours.columns, refined[0] // ours.rows)


# Through the core --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(4):
        photograph(300, 200, seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(registry: Registry, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    options = Options(height=112, width=168, choices={"fit": "slice"})
    convert(MODEL, out, weights="random-tiny", images=[images], options=options, registry=registry)
    return out


def test_the_exported_graph_suits_the_target_and_computes_the_model(bundle: Path) -> None:
    """No lint finding for AX650 and a close match. Oracle: the operator table, PyTorch."""
    manifest = json.loads((bundle / "axcore.json").read_text())
    (component,) = manifest["components"]
    assert component["findings"] == []
    assert component["verification"]["cosine"] > 0.999999
    graph = onnx.load(bundle / "minicpmv4_6_vision_112x168.onnx", load_external_data=False).graph
    assert not {node.op_type for node in graph.node} & {"Neg", "Reciprocal", "Loop", "If"}


def test_the_early_merger_may_stay_behind(registry: Registry, tmp_path: Path) -> None:
    """4x converts, without a stage that 16x has. Oracle: the operator table, PyTorch."""
    options = Options(height=84, width=140, choices={"downsample": "4x"})
    convert(MODEL, tmp_path, weights="random-tiny", options=options, registry=registry)
    (component,) = json.loads((tmp_path / "axcore.json").read_text())["components"]
    assert component["findings"] == []
    assert component["verification"]["cosine"] > 0.999999
    assert "vit_merger" not in component["stages"]


def test_a_checkpoint_may_hold_multi_token_prediction(registry: Registry, tmp_path: Path) -> None:
    """`mtp.*` tensors are left alone. Oracle: a plan is made all the same."""
    folder = fabricate(CARD, "tiny", tmp_path / "checkpoint")
    (shard,) = folder.glob("*.safetensors")
    save_file({**load_file(shard), "mtp.fc.weight": torch.zeros(4, 4)}, shard)
    made = plan(str(folder), registry=registry)
    assert made.model == MODEL


def test_calibration_and_configuration_are_as_published(bundle: Path) -> None:
    """Arrays of the input's own shape, 64 at most. Oracle: the published configuration."""
    config = json.loads((bundle / "minicpmv4_6_vision_112x168.pulsar2.json").read_text())
    (source,), (processor,) = config["quant"]["input_configs"], config["input_processors"]
    assert source["calibration_format"] == "Numpy"
    assert source["calibration_size"] == 4
    assert not {"calibration_mean", "calibration_std"} & source.keys()
    assert processor["src_dtype"] == "FP32"


def test_a_sample_is_a_piece_stretched_to_the_static_size(bundle: Path) -> None:
    """A small image is one piece, sized as published. Oracle: transformers' rule, Pillow."""
    image = photograph(300, 200)
    height, width = PROCESSOR.find_best_resize((200, 300), 448, 14, "16x", allow_upscale=True)
    for size in [(width, height), (168, 112)]:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = (np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)
    patches = pixels.reshape(3, 8, 14, 12, 14).transpose(0, 2, 1, 3, 4)
    sample = np.load(bundle / "calib_vision_data" / "data_0.npy")
    assert sample.dtype == np.float32
    np.testing.assert_allclose(sample, patches.reshape(1, 3, 14, -1), atol=1e-6)


def test_the_builder_is_told_type_and_lengths(bundle: Path) -> None:
    """The language model's build. Oracle: the published command."""
    manifest = json.loads((bundle / "axcore.json").read_text())
    llm = manifest["build"]["llm"]
    assert llm["model_type"] == "qwen3_5_text"
    assert (llm["prefill_len"], llm["kv_cache_len"]) == (128, 2047)
    assert llm["last_kv_cache_len"] == [*range(128, 1153, 128)]
    assert any("3 of 4 layers" in note for note in manifest["notes"])
    script = (bundle / "build.sh").read_text()
    assert "--model_type qwen3_5_text" in script
    assert "--last_kv_cache_len 1152" in script


def test_a_prompt_needs_nothing_that_a_board_lacks(registry: Registry, bundle: Path) -> None:
    """Slices among it. Oracle: the modules that are imported."""
    check_prompt(bundle, registry)


def test_a_prompt_too_short_for_all_slices_is_said(registry: Registry) -> None:
    """Ten pieces of 256 rows against 1280 tokens. Oracle: the arithmetic by hand."""
    large = {"height": 896, "width": 896}
    sliced = planned(registry, choices={"fit": "slice"}, **large).notes
    assert any("up to 2560 rows, 256 a piece" in note and "1280" in note for note in sliced)
    for fitting in (planned(registry, choices={"fit": "slice"}), planned(registry, **large)):
        assert not any("a piece" in note for note in fitting.notes)
