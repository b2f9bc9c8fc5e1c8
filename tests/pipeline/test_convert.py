"""What a conversion leaves in the folder, held against the checkpoint it was made from."""

from __future__ import annotations

import json
import math
import os
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

import axcore
from axcore import BudgetError, UsageError
from axcore.calibration import find_images
from axcore.checkpoint import Checkpoint
from axcore.files import sha256
from axcore.testing import Recorder
from axcore_plugins_qwen25vl.preprocess import GRID, IMAGE_CALIBRATION

from ..bundles import (
    EMBEDDING,
    IMAGES,
    MODEL,
    STEM,
    TEXT_SHARD,
    change_json,
    contents,
    convert,
    map_tensors,
    steps_done,
)

if TYPE_CHECKING:
    from torch import Tensor

EXPECTED = {
    "axcore.json",
    f"{STEM}.onnx",
    f"{STEM}.onnx.data",
    f"{STEM}.pulsar2.json",
    "hidden_states.tar",
    *(f"calib_vision_data/data_{i}.png" for i in range(6)),
    "model.embed_tokens.weight.bfloat16.bin",
    "model.embed_tokens.weight.npy",
    "model.embed_tokens.weight.float32.bin",
    "build.sh",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
}


def manifest_of(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "axcore.json").read_text())
    assert isinstance(content, dict)
    return content


def feed_of(folder: Path) -> np.ndarray[Any, Any]:
    """Return what the graph receives of the first calibration image, as Pulsar2 makes it.

    The tool reads a PNG as BGR and hands it on in that order.
    """
    with Image.open(folder / "calib_vision_data/data_0.png") as image:
        return IMAGE_CALIBRATION.graph_input(np.asarray(image)[..., ::-1])


def run(folder: Path, feed: np.ndarray[Any, Any], *names: str) -> np.ndarray[Any, Any]:
    """Run the named files one after the other, as a user would."""
    for name in names:
        session = ort.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        (feed,) = session.run(None, {source.name: feed})
    return feed


# The whole bundle --------------------------------------------------------------------------------


def test_every_promised_file_is_there_and_no_other(converted: Path) -> None:
    """Oracle: the bundle's documented contents, written out by hand."""
    assert set(contents(converted)) == EXPECTED


def test_the_manifest_lists_every_file_as_it_is(converted: Path) -> None:
    """Names, sizes and sha256. Oracle: the files themselves, read anew."""
    listed = manifest_of(converted)["files"]
    assert set(listed) == EXPECTED - {"axcore.json"}
    for name, entry in listed.items():
        path = converted / name
        assert entry == {"size": path.stat().st_size, "sha256": sha256(path)}, name


def test_the_manifest_says_what_was_converted_and_how_well(
    converted: Path, checkpoint: Path
) -> None:
    """Oracle: the request, and the thresholds of the guide."""
    manifest = manifest_of(converted)
    assert manifest["model"]["id"] == MODEL
    assert manifest["checkpoint"]["folder"] == str(checkpoint)
    assert manifest["options"]["embedding_formats"] == ["npy", "f32bin"]
    (component,) = manifest["components"]
    assert component["findings"] == []
    found = component["verification"]
    assert found["cosine"] >= 0.9999
    assert 0 <= found["max_abs"] <= 1e-3
    assert [stage["stage"] for stage in found["stages"]] == component["stages"]
    assert component["stages"] == [
        "patch_embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "merger",
    ]  # fmt: skip


def test_the_graph_answers_as_transformers_does(converted: Path, checkpoint: Path) -> None:
    """From a photograph to tokens, through the files alone. Oracle: transformers' own class."""
    import torch
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
    )

    with Checkpoint.open(checkpoint) as opened:
        model = Qwen2_5_VisionTransformerPretrainedModel(
            Qwen2_5_VLVisionConfig(**opened.config["vision_config"])
        )
        keys = [key for key in opened.tensors if key.startswith("visual.")]
        weights = {key.removeprefix("visual."): opened.tensor(key).float() for key in keys}
    model.load_state_dict(weights)
    feed = feed_of(converted)
    rows = torch.from_numpy(feed)[0].transpose(0, 1).reshape(-1, 3 * 392)
    with torch.no_grad():
        theirs = model(rows, grid_thw=torch.tensor([[1, 32, 32]])).pooler_output.numpy()
    ours = run(converted, feed, STEM)
    assert ours.shape == theirs.shape == (256, 64)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_calibration_images_reach_the_graph_as_rgb_patches(converted: Path) -> None:
    """Every sample, read as BGR. Oracle: the family's preprocessing of the same photographs."""
    images = find_images([IMAGES])
    with tarfile.open(converted / "hidden_states.tar") as archive:
        assert archive.getnames() == [f"data_{i}.png" for i in range(len(images))]
        for image, name in zip(images, archive.getnames(), strict=True):
            member = archive.extractfile(name)
            assert member is not None
            stored = member.read()
            assert stored == (converted / "calib_vision_data" / name).read_bytes()
            with Image.open(converted / "calib_vision_data" / name) as sample:
                as_bgr = np.asarray(sample)[..., ::-1]
            np.testing.assert_array_equal(as_bgr, GRID.patches([image.load()], 448, 448))


def test_the_build_configuration_points_at_what_is_there(converted: Path) -> None:
    """Oracle: the archive and the graph themselves."""
    config = json.loads((converted / f"{STEM}.pulsar2.json").read_text())
    (samples,) = config["quant"]["input_configs"]
    with tarfile.open(converted / samples["calibration_dataset"]) as archive:
        assert samples["calibration_size"] == len(archive.getnames())
    graph = onnx.load(converted / f"{STEM}.onnx", load_external_data=False).graph
    assert samples["tensor_name"] == graph.input[0].name
    script = (converted / "build.sh").read_text()
    for name in re.findall(r"--(?:input|config) (\S+)", script):
        assert (converted / name).is_file(), name
    assert os.access(converted / "build.sh", os.X_OK)


def test_the_embedding_is_the_shards_bytes(converted: Path, checkpoint: Path) -> None:
    """The raw table bit for bit, the others by value. Oracle: the tensor as safetensors reads it.

    bfloat16 is the upper half of float32, so both float32 forms are exact.
    """
    import torch
    from safetensors import safe_open

    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    with safe_open(checkpoint / index["weight_map"][EMBEDDING], "pt") as shard:
        table = shard.get_tensor(EMBEDDING)
    raw = (converted / f"{EMBEDDING}.bfloat16.bin").read_bytes()
    assert raw == table.view(torch.uint16).numpy().tobytes()
    wide = table.float().numpy()
    np.testing.assert_array_equal(np.load(converted / f"{EMBEDDING}.npy"), wide)
    assert (converted / f"{EMBEDDING}.float32.bin").read_bytes() == wide.tobytes()


def test_small_files_of_the_checkpoint_are_copied(converted: Path, checkpoint: Path) -> None:
    """Oracle: the originals. The index and the weights stay behind."""
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        assert (converted / name).read_bytes() == (checkpoint / name).read_bytes()


# Options -----------------------------------------------------------------------------------------


def test_two_files_compute_what_one_does(converted: Path, checkpoint: Path, tmp_path: Path) -> None:
    """``--split 2``. Oracle: the undivided graph; the second part is calibrated by the first."""
    bundle = convert(checkpoint, tmp_path / "out", split=2, verify=False)
    parts = [f"{STEM}_part1", f"{STEM}_part2"]
    assert [path.stem for path in bundle.graphs] == parts
    feed = feed_of(converted)
    whole, halves = run(converted, feed, STEM), run(bundle.folder, feed, *parts)
    np.testing.assert_allclose(halves, whole, atol=1e-6 * np.abs(whole).max(), rtol=1e-5)
    between = run(bundle.folder, feed, parts[0])
    second = json.loads((bundle.folder / f"{parts[1]}.pulsar2.json").read_text())
    (samples,) = second["quant"]["input_configs"]
    stored = np.load(bundle.folder / f"calib_{parts[1]}_data/data_0.npy")
    np.testing.assert_array_equal(stored, between)
    assert samples["calibration_format"] == "Numpy"
    assert (bundle.folder / samples["calibration_dataset"]).is_file()


def test_auto_leaves_a_small_graph_whole(bundle: Path, checkpoint: Path) -> None:
    """``--split auto`` below 2 GB: the same files, none made anew. Oracle: the earlier bundle."""
    before, progress = contents(bundle), Recorder()
    convert(checkpoint, bundle, progress, split="auto")
    after = contents(bundle)
    del before["axcore.json"], after["axcore.json"]
    assert after == before
    assert steps_done(progress) == set()


def test_float16_is_said_to_be_risky_and_is_verified(checkpoint: Path, tmp_path: Path) -> None:
    """Graph, ports and weights in float16; a note; a cosine. Oracle: onnx and the guide."""
    bundle = convert(checkpoint, tmp_path / "out", dtype="float16", images=[])
    manifest = bundle.manifest.data()
    assert any("float16" in note and "SiLU" in note for note in manifest["notes"])
    assert manifest["components"][0]["verification"]["cosine"] > 0.999
    graph = onnx.load(bundle.graphs[0]).graph
    kinds = {port.type.tensor_type.elem_type for port in [*graph.input, *graph.output]}
    assert kinds == {onnx.TensorProto.FLOAT16}
    matrices = {i.data_type for i in graph.initializer if math.prod(i.dims) >= 64 * 64}
    assert matrices == {onnx.TensorProto.FLOAT16}  # norms compute in float32, as upstream's do


def test_bfloat16_is_said_to_be_unverified(checkpoint: Path, tmp_path: Path) -> None:
    """A note, null in the manifest, `verify` refuses, and so does the calibration of parts.

    Oracle: the guide.
    """
    bundle = convert(checkpoint, tmp_path / "out", dtype="bfloat16", images=[])
    assert any(
        "bfloat16" in note and "not verified" in note for note in bundle.manifest.data()["notes"]
    )
    assert bundle.manifest.data()["components"][0]["verification"] is None
    (port,) = onnx.load(bundle.graphs[0], load_external_data=False).graph.input
    assert port.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    with pytest.raises(UsageError, match="bfloat16"):
        axcore.verify(bundle.folder)
    with pytest.raises(UsageError, match="bfloat16 graph cannot be run to calibrate"):
        convert(checkpoint, tmp_path / "out", dtype="bfloat16", split=2)


@pytest.mark.parametrize("opset", [16, 20])
def test_other_operator_sets(checkpoint: Path, tmp_path: Path, opset: int) -> None:
    """The oldest and the newest offered. Oracle: onnx reads the number, verification ran."""
    bundle = convert(checkpoint, tmp_path / "out", opset=opset, images=[])
    model = onnx.load(bundle.graphs[0], load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    assert bundle.manifest.data()["components"][0]["verification"]["cosine"] >= 0.9999


def test_a_size_that_windows_do_not_fill(checkpoint: Path, tmp_path: Path) -> None:
    """Ragged and oblong. Oracle: H·W/196 patches, H·W/784 tokens; verification ran."""
    height, width = 140, 196
    bundle = convert(checkpoint, tmp_path / "out", height=height, width=width)
    (component,) = bundle.manifest.data()["components"]
    assert component["inputs"][0]["shape"] == [1, 3, height * width // 196, 392]
    assert component["outputs"][0]["shape"] == [height * width // 784, 64]
    assert component["verification"]["cosine"] >= 0.9999
    with Image.open(bundle.folder / "calib_vision_data/data_0.png") as sample:
        assert sample.size == (392, height * width // 196)


def test_video_takes_two_frames_a_step(checkpoint: Path, tmp_path: Path) -> None:
    """The published profile as it stands: 308 px, P512. Oracle: its table, and six images."""
    bundle = convert(checkpoint, tmp_path / "out", task="video")
    (component,) = bundle.manifest.data()["components"]
    assert component["inputs"][0]["shape"] == [1, 3, 484, 392]
    assert component["outputs"][0]["shape"] == [121, 64]
    assert component["verification"]["cosine"] >= 0.9999
    assert len(list((bundle.folder / "calib_vision_data").iterdir())) == 3
    frames = [image.load() for image in find_images([IMAGES])[:2]]
    with Image.open(bundle.folder / "calib_vision_data/data_0.png") as sample:
        np.testing.assert_array_equal(np.asarray(sample)[..., ::-1], GRID.patches(frames, 308, 308))
    config = json.loads((bundle.folder / f"{STEM}.pulsar2.json").read_text())
    assert config["quant"]["input_configs"][0]["calibration_size"] == 3
    assert "--prefill_len 512" in (bundle.folder / "build.sh").read_text()


def test_vision_only_needs_no_text_shard(bundle: Path, own_checkpoint: Path) -> None:
    """A shard of text weights is absent; the embedding goes, the graph stays. Oracle: the names."""
    (own_checkpoint / TEXT_SHARD).unlink()
    graph = (bundle / f"{STEM}.onnx.data").read_bytes()
    convert(own_checkpoint, bundle, vision_only=True)
    assert not [name for name in contents(bundle) if name.startswith("model.embed_tokens")]
    assert manifest_of(bundle)["embedding"] is None
    assert (bundle / f"{STEM}.onnx.data").read_bytes() == graph


def test_without_verification_the_manifest_says_so(bundle: Path, checkpoint: Path) -> None:
    """``--no-verify``: null in the manifest, the graph untouched. Oracle: the earlier bundle."""
    before = contents(bundle)
    convert(checkpoint, bundle, verify=False)
    assert manifest_of(bundle)["components"][0]["verification"] is None
    assert {n for n, sha in contents(bundle).items() if before[n] != sha} == {"axcore.json"}


# The same model by other names -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen25VL-3B", "qwen2.5-vl-3b-instruct", "FOLDER"])
def test_id_alias_and_folder_mean_the_same(bundle: Path, checkpoint: Path, name: str) -> None:
    """Every byte is as before. Oracle: the bundle made by id."""
    before, progress = contents(bundle), Recorder()
    if name == "FOLDER":
        axcore.convert(
            str(checkpoint),
            bundle,
            images=[IMAGES],
            options=axcore.Options(embedding_formats=("npy", "f32bin")),
            progress=progress,
        )
    else:
        convert(checkpoint, bundle, progress, model=name)
    assert contents(bundle) == before
    assert steps_done(progress) == set()


def test_a_newer_layout_gives_the_same_graph(
    converted: Path, own_checkpoint: Path, tmp_path: Path
) -> None:
    """``model.visual.``, ``model.language_model.``, and the same values as float32.

    Oracle: the bytes made from the older names and bfloat16, which float32 holds exactly.
    """

    def renewed(key: str, tensor: Tensor) -> tuple[str, Tensor]:
        text = key.replace("model.", "model.language_model.", 1)
        return f"model.{key}" if key.startswith("visual.") else text, tensor.float()

    map_tensors(own_checkpoint, renewed)
    convert(own_checkpoint, tmp_path / "out", verify=False)
    expected, found = contents(converted), contents(tmp_path / "out")
    changed = {name for name, sha in found.items() if expected[name] != sha}
    assert changed == {"axcore.json", "build.sh"}  # both name the checkpoint's folder


def test_a_float16_checkpoint_is_rounded_for_the_board(
    own_checkpoint: Path, tmp_path: Path
) -> None:
    """Graph exact, embedding rounded to nearest. Oracle: numpy, ml_dtypes and verification."""
    map_tensors(own_checkpoint, lambda key, tensor: (key, tensor.half()))
    bundle = convert(own_checkpoint, tmp_path / "out", images=[])
    assert bundle.manifest.data()["components"][0]["verification"]["cosine"] >= 0.9999
    with Checkpoint.open(own_checkpoint) as opened:
        table = opened.array(EMBEDDING)
        head = opened.array("visual.merger.mlp.2.bias")
    rounded = table.astype(ml_dtypes.bfloat16)
    assert (bundle.folder / f"{EMBEDDING}.bfloat16.bin").read_bytes() == rounded.tobytes()
    values = [onnx.numpy_helper.to_array(i) for i in onnx.load(bundle.graphs[0]).graph.initializer]
    same = [v for v in values if v.shape == head.shape and np.array_equal(v, head.astype("f4"))]
    assert len(same) == 1


# What is refused before anything is done ---------------------------------------------------------


def test_a_prompt_that_cannot_hold_an_image_leaves_no_folder(
    checkpoint: Path, tmp_path: Path
) -> None:
    """256 tokens in a chunk of 200. Oracle: the arithmetic; nothing is on disk."""
    with pytest.raises(BudgetError, match="256 tokens") as caught:
        convert(checkpoint, tmp_path / "out", prefill_len=200)
    assert "--prefill-len" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_code_of_a_checkpoint_is_neither_run_nor_copied_unless_asked(
    bundle: Path, own_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto_map`` beside a module that would leave a trace. Oracle: the trace, and stdin."""
    trace = own_checkpoint / "ran"
    (own_checkpoint / "modeling_trap.py").write_text(f"open({str(trace)!r}, 'w')\n")
    change_json(own_checkpoint / "config.json", auto_map={"AutoModel": "modeling_trap.Trap"})
    monkeypatch.setattr("sys.stdin", None)  # a question would fail
    convert(own_checkpoint, bundle, verify=False)
    assert not trace.exists()
    assert "modeling_trap.py" not in contents(bundle)
    convert(own_checkpoint, bundle, verify=False, copy_code=True)
    assert "modeling_trap.py" in contents(bundle)
    assert not trace.exists()
    assert "auto_map" in (bundle / "config.json").read_text()
