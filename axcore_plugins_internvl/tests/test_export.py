"""The family through the core: both layouts, tiles, archives."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from axcore import BudgetError, ImageError, Options, UsageError, convert, plan
from axcore.testing import check_family

from .conftest import Family, photograph

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Registry

SIZE = Options(height=112, width=168)
STEM = "internvl_vit_model_1x3x112x168"
TABLE = "model.embed_tokens.weight.bfloat16.bin"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(4):
        photograph(200, 300, seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def bundles(
    families: dict[str, Family],
    registry: Registry,
    images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The same numbers in both layouts, converted at a size that needs interpolated positions."""
    made = {}
    for layout, folder in families["internvl3.5-1b"].folders.items():
        made[layout] = tmp_path_factory.mktemp(layout)
        convert(str(folder), made[layout], images=[images], options=SIZE, registry=registry)
    return made


def test_both_layouts_give_the_same_bytes(bundles: dict[str, Path]) -> None:
    """Graph, weights, embedding, samples, configuration. Oracle: each other."""
    names = (f"{STEM}.onnx", f"{STEM}.onnx.data", f"{STEM}.pulsar2.json", TABLE, "image.tar")
    for name in names:
        assert (bundles["native"] / name).read_bytes() == (bundles["remote"] / name).read_bytes()


def test_the_exported_graph_suits_the_target_and_computes_the_model(
    bundles: dict[str, Path],
) -> None:
    """No lint finding for AX650, a close match, nothing resized. Oracle: operators, PyTorch."""
    manifest = json.loads((bundles["remote"] / "axcore.json").read_text())
    (component,) = manifest["components"]
    assert component["findings"] == []
    assert component["verification"]["cosine"] > 0.999999
    graph = onnx.load(bundles["remote"] / f"{STEM}.onnx", load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"Resize", "Expand", "Split", "Gather", "Einsum", "Neg", "Reciprocal"}


def test_calibration_and_configuration_are_as_published(bundles: dict[str, Path]) -> None:
    """Images normalised by the target, what the board feeds by the host.

    Oracle: the published configuration.
    """
    config = json.loads((bundles["remote"] / f"{STEM}.pulsar2.json").read_text())
    (source,), (processor,) = config["quant"]["input_configs"], config["input_processors"]
    assert source == {
        "tensor_name": "image",
        "calibration_dataset": "image.tar",
        "calibration_format": "Image",
        "calibration_size": -1,
        "calibration_mean": [123.675, 116.28, 103.53],
        "calibration_std": [58.395, 57.12, 57.375],
    }
    assert processor == {
        "tensor_name": "image",
        "tensor_format": "RGB",
        "tensor_layout": "NCHW",
        "src_dtype": "FP32",
        "src_layout": "NCHW",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    }
    assert len(list((bundles["remote"] / "calib_vision_data").iterdir())) == 4


def test_the_builder_is_told_type_and_lengths(bundles: dict[str, Path]) -> None:
    """The language model's build for both generations. Oracle: the published command."""
    script = (bundles["remote"] / "build.sh").read_text()
    histories = " ".join(f"--last_kv_cache_len {length}" for length in range(128, 1025, 128))
    assert f"--prefill_len 128 --kv_cache_len 2047 {histories} --parallel 8" in script
    assert "--max_context 2048 --prefill_step_size 128 --prefill_len 1152" in script
    assert "--check_level 1" in script
    assert "--model_type qwen3" in script
    notes = {layout: (path / "build.sh").read_text() for layout, path in bundles.items()}
    assert "layout of newer transformers" in notes["native"]
    assert "layout of newer transformers" not in notes["remote"]


def test_the_embedding_is_the_language_models(bundles: dict[str, Path], family: Family) -> None:
    """Bytes of the table. Oracle: the checkpoint that transformers wrote."""
    tensors = load_file(family.folders["native"] / "model.safetensors")
    table = tensors["language_model.model.embed_tokens.weight"].view(torch.uint8).numpy()
    assert (bundles["native"] / TABLE).read_bytes() == table.tobytes()


def planned(family: Family, registry: Registry, layout: str = "remote", **options: Any) -> Any:
    folder = str(family.folders[layout])
    return plan(folder, registry=registry, **options)


def test_hooks_keep_their_promises(registry: Registry, tmp_path: Path) -> None:
    """The laws of every family, split graphs among them. Oracle: the core's conformance kit."""
    check_family("internvl", out=tmp_path, model="internvl3-2b", registry=registry, build=False)


def test_the_published_name_and_ports(families: dict[str, Family], registry: Registry) -> None:
    """One tile of 448x448 px gives 256 tokens; the other builder type. Oracle: the seed's names."""
    made = planned(families["internvl3-1b"], registry)
    (component,) = made.components
    assert "internvl_vit_model_1x3x448x448.onnx" in {file.name for file in made.files}
    assert (component.inputs[0].name, component.inputs[0].shape) == ("image", (1, 3, 448, 448))
    assert (component.outputs[0].name, component.outputs[0].shape) == ("output", (1, 256, 64))
    assert "--model_type qwen2" in made.prepared_files["build.sh"]


def test_several_tiles_become_one_batch(
    family: Family, registry: Registry, images: Path, tmp_path: Path
) -> None:
    """Three tiles in one run, from images of 3:2. Oracle: names, shapes, the verification."""
    options = replace(SIZE, choices={"tiles": "3"})
    bundle = convert(
        str(family.folders["remote"]), tmp_path, images=[images], options=options,
        registry=registry,
    )  # fmt: skip
    (component,) = bundle.manifest.data()["components"]
    assert component["findings"] == []
    assert component["verification"]["cosine"] > 0.999999
    assert component["outputs"][0]["shape"] == [3, 24, 64]
    assert (tmp_path / "internvl_vit_model_3x3x112x168.onnx").is_file()
    sample = np.load(tmp_path / "calib_vision_data" / "data_0.npy")
    assert (sample.shape, sample.dtype) == ((3, 3, 112, 168), np.float32)


def test_more_tiles_than_a_prompt_holds_are_refused(family: Family, registry: Registry) -> None:
    """Five tiles of 256 tokens need 1304 of 1152; longer histories mend it. Oracle: the sum."""
    with pytest.raises(BudgetError, match="needs 1304 tokens, but holds 1152"):
        planned(family, registry, choices={"tiles": "5"})
    histories = tuple(range(128, 1281, 128))
    planned(family, registry, choices={"tiles": "5"}, last_kv_cache_len=histories)


# The head ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_whether_the_head_is_tied_the_file_decides(
    family: Family, registry: Registry, tmp_path: Path, tied: bool, stored: bool
) -> None:
    """The config may say either. Oracle: all four are accepted."""
    source = family.folders["remote"]
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = tied
    if not stored:
        del tensors["language_model.lm_head.weight"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    assert plan(str(tmp_path), registry=registry).rows == 256


# A calibration archive ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("archive") / "imagenet-calib"
    return type(base)(shutil.make_archive(str(base), "tar", images))


def test_an_archive_is_used_as_it_is(
    family: Family, registry: Registry, archive: Path, tmp_path: Path
) -> None:
    """Same bytes, its own name, all of it used, checksum and origin recorded. Oracle: the file."""
    bundle = convert(
        str(family.folders["remote"]), tmp_path, calibration_archive=str(archive), options=SIZE,
        verify=False, registry=registry,
    )  # fmt: skip
    assert (tmp_path / archive.name).read_bytes() == archive.read_bytes()
    config = json.loads((tmp_path / f"{STEM}.pulsar2.json").read_text())
    (source,) = config["quant"]["input_configs"]
    assert source["calibration_dataset"] == "imagenet-calib.tar"
    assert source["calibration_size"] == -1
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    recorded = {"name": archive.name, "source": str(archive), "sha256": digest}
    assert bundle.manifest.data()["calibration_archive"] == recorded
    assert bundle.manifest.files["imagenet-calib.tar"].sha256 == digest
    assert "[[ -f imagenet-calib.tar ]]" in (tmp_path / "build.sh").read_text()
    assert not any("calibration" in note for note in bundle.manifest.notes)
    assert bundle.build_request.graphs[0].samples == 4
    planned = plan(
        str(family.folders["remote"]), calibration_archive=str(archive), registry=registry
    )
    assert {f.name: f.bytes for f in planned.files}[archive.name] == archive.stat().st_size


@pytest.mark.parametrize(
    ("options", "with_images", "error", "evidence"),
    [
        (Options(choices={"tiles": "3"}), False, ImageError, r"holds no \.npy file"),
        (Options(split=2), False, UsageError, "makes 2 files"),
        (Options(), True, UsageError, "replaces the samples"),
    ],
)
def test_an_archive_that_cannot_serve_is_refused(
    family: Family,
    registry: Registry,
    archive: Path,
    options: Options,
    with_images: bool,
    error: type[Exception],
    evidence: str,
) -> None:
    """Arrays are asked for, several files, images besides. Oracle: what was asked."""
    with pytest.raises(error, match=evidence):
        plan(
            str(family.folders["remote"]),
            calibration_archive=str(archive),
            images=[archive] if with_images else [],
            options=options,
            registry=registry,
        )
