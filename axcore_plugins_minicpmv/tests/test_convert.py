"""MiniCPM-V-4 and MiniCPM-V-2 through the core: files, calibration, configurations, errors."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from axcore import Options, UnsupportedProfile, convert, lint, plan
from axcore_plugins_minicpmv import preprocess, v2, v4
from axcore_plugins_minicpmv.slicing import slicing

from .conftest import photograph

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import ModelCard, Registry

    from .conftest import MakeCheckpoint

V4, V2 = v4.card(), v2.card()
WIDE, SQUARE = (500, 400), (450, 440)  # the first is cut in two


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "0.png", folder / "1.png"]
    for path, size in zip(paths, (WIDE, SQUARE), strict=True):
        photograph(*size).save(path)
    return paths


@pytest.fixture(scope="module")
def folders(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {card.id: make_checkpoint(card, root / card.id) for card in (V4, V2)}


Bundles = dict[str, "Path"]


@pytest.fixture(scope="module")
def bundles(
    registry: Registry,
    folders: dict[str, Path],
    images: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundles:
    """Converted and verified: V-4 in both layouts, and V-2."""
    root = tmp_path_factory.mktemp("bundles")

    def made(card: ModelCard, name: str, **options: Any) -> Path:
        chosen = Options(height=112, width=140, **options)
        folder = folders[card.id]
        return convert(
            str(folder), root / name, images=images, options=chosen, registry=registry
        ).folder

    strip = {"choices": {"layout": "strip", "fit": "slice"}, "embedding_formats": ("pth",)}
    return {
        "plain": made(V4, "plain"),
        "strip": made(V4, "strip", **strip),
        "v2": made(V2, "v2", choices={"fold-scales": "yes"}),
    }


def samples(archive: Path) -> list[Any]:
    """Return the arrays of an archive in the order of their numbers."""
    with tarfile.open(archive) as tar:
        names = sorted(tar.getnames(), key=lambda name: int(name[5:-4]))
        read = [tar.extractfile(name) for name in names]
        # Our own files; a dictionary of arrays is pickled.
        return [np.load(BytesIO(f.read()), allow_pickle=True) for f in read if f is not None]


def run(path: Path, feed: dict[str, Any]) -> Any:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_the_target_runs_every_operator(bundles: Bundles) -> None:
    """No finding for AX650. Oracle: the chip's operator table."""
    assert [finding for folder in bundles.values() for finding in lint(folder)] == []


def test_graphs_agree_with_the_model(bundles: Bundles) -> None:
    """Every stage of every graph. Oracle: PyTorch on the first image, in the manifest."""
    for folder in bundles.values():
        manifest = json.loads((folder / "axcore.json").read_text())
        for component in manifest["components"]:
            assert component["verification"]["cosine"] >= 0.9999, component["name"]
            assert component["verification"]["max_abs"] <= 1e-3, component["name"]


def test_layouts_feed_the_published_form(bundles: Bundles, images: list[Path]) -> None:
    """The dictionaries of both layouts. Oracle: our preprocessing, whole and piece by piece."""
    opened = [Image.open(path).convert("RGB") for path in images]
    plain = [sample.item() for sample in samples(bundles["plain"] / "siglip.tar")]
    assert [set(sample) for sample in plain] == [{"pixel_values"}] * 2
    (whole,) = preprocess.samples(opened[0], 112, 140, "stretch")
    np.testing.assert_array_equal(plain[0]["pixel_values"], whole)
    strip = [sample.item() for sample in samples(bundles["strip"] / "siglip.tar")]
    pieces = [p for o in opened for p in preprocess.samples(o, 112, 140, "slice")]
    assert len(strip) == len(pieces) == sum(len(slicing(*size).sizes) for size in (WIDE, SQUARE))
    for sample, piece in zip(strip, pieces, strict=True):
        np.testing.assert_array_equal(sample["all_pixel_values"], preprocess.strip(piece))
        np.testing.assert_array_equal(sample["position_ids"], preprocess.position_ids(8, 10, 70))


@pytest.mark.parametrize("layout", ["plain", "strip"])
def test_the_resampler_is_calibrated_with_real_features(bundles: Bundles, layout: str) -> None:
    """Its samples are what the exported tower makes of the tower's samples.

    Oracle: the exported graph under ONNX Runtime.
    """
    folder = bundles[layout]
    for given, made in zip(
        samples(folder / "siglip.tar"), samples(folder / "resampler.tar"), strict=True
    ):
        expected = run(folder / "siglip.onnx", given.item())
        np.testing.assert_allclose(made.item()["vision_embedding"], expected, atol=1e-5)


def test_a_single_array_a_file_for_v2(bundles: Bundles) -> None:
    """V-2's samples are plain arrays, its features real. Oracle: the exported graph."""
    given, made = (
        samples(bundles["v2"] / f"{n}.tar") for n in ("pixel_values", "vision_embedding")
    )
    expected = run(bundles["v2"] / "siglip.onnx", {"pixel_values": given[1]})
    np.testing.assert_allclose(made[1], expected, atol=1e-5)


def test_v4s_configurations_are_the_published_ones(bundles: Bundles) -> None:
    """16 bits for both; the published resampler has 8, too few for a softmax over 1024 keys.

    Oracle: the published configuration files, but for that.
    """
    quant = {
        "calibration_method": "MinMax",
        "precision_analysis": True,
        "precision_analysis_method": "EndToEnd",
        "precision_analysis_mode": "NPUBackend",
        "conv_bias_data_type": "FP32",
        "enable_smooth_quant": True,
        "transformer_opt_level": 1,
        "disable_auto_refine_scale": True,
        "device": "cuda:0",
    }
    wide = {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"}
    for stem in ("siglip", "resampler"):
        found = json.loads((bundles["strip"] / f"{stem}.pulsar2.json").read_text())
        inputs = {
            "tensor_name": "DEFAULT",
            "calibration_dataset": f"{stem}.tar",
            "calibration_format": "NumpyObject",
            "calibration_size": -1,
        }
        assert found == {
            "model_type": "ONNX",
            "target_hardware": "AX650",
            "npu_mode": "NPU3",
            "quant": {"input_configs": [inputs], **quant, "layer_configs": [wide]},
            "input_processors": [{"tensor_name": "DEFAULT", "tensor_format": "AutoColorSpace"}],
            "compiler": {"check": 0, "npu_perf": False},
        }


def test_embedding_files(bundles: Bundles, folders: dict[str, Path]) -> None:
    """V-4's table as stored, and as the published script reads it. Oracle: torch."""
    table = load_file(folders["minicpm-v-4"] / "model.safetensors")["llm.model.embed_tokens.weight"]
    raw = (bundles["strip"] / "model.embed_tokens.weight.bfloat16.bin").read_bytes()
    assert raw == table.view(torch.uint8).numpy().tobytes()
    saved = torch.load(bundles["strip"] / "embed_tokens.pth", weights_only=False)  # our own file
    assert torch.equal(saved.weight, table.float())


def test_a_folded_bundle_holds_its_llama(bundles: Bundles) -> None:
    """Config, weights and where the builder looks. Oracle: the names in the bundle."""
    config = json.loads((bundles["v2"] / "llm/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "scale_emb" not in config
    assert (bundles["v2"] / "llm/model.safetensors").exists()
    assert "${CHECKPOINT:-llm}" in (bundles["v2"] / "build.sh").read_text()


@pytest.mark.parametrize("card", [V4, V2], ids=["v4", "v2"])
def test_the_tower_is_split_and_the_resampler_is_not(
    registry: Registry, folders: dict[str, Path], card: ModelCard
) -> None:
    """Two parts and one whole. Oracle: the names of the files."""
    made = plan(str(folders[card.id]), options=Options(split=2), registry=registry)
    names = [file.name for file in made.files if file.name.endswith(".onnx")]
    assert names == ["siglip_part1.onnx", "siglip_part2.onnx", "resampler.onnx"]


def test_a_size_beyond_the_positions_is_refused(
    registry: Registry, folders: dict[str, Path]
) -> None:
    """71 patches a side. Oracle: the table of 70 x 70."""
    for folder in folders.values():
        with pytest.raises(UnsupportedProfile, match="994x448"):
            plan(str(folder), options=Options(height=994), registry=registry)
