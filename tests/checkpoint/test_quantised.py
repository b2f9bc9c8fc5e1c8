"""A language model quantised by GPTQ is held against the float layout it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from axcore.checkpoint import Checkpoint, as_stored, check_layout
from axcore.checkpoint.quantised import check_groups, float_sources, float_tensor
from axcore.errors import CheckpointError

TEXT = ("model.",)
EXPECTED = {
    "vision.weight": (8, 16),
    "model.embed.weight": (32, 256),
    "model.up.weight": (64, 256),
    "model.up.bias": (64,),
    "model.norm.weight": (256,),
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


def opened(folder: Path, stem: str, config: dict[str, Any]) -> Checkpoint:
    """Open a checkpoint whose projection `stem` is stored as GPTQModel packs 4 bits."""
    tensors = {
        key: torch.zeros(shape) for key, shape in EXPECTED.items() if key != f"{stem}.weight"
    }
    rows, columns = EXPECTED[f"{stem}.weight"]
    tensors |= {
        f"{stem}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        f"{stem}.qzeros": torch.zeros(max(columns // 128, 1), rows // 8, dtype=torch.int32),
        f"{stem}.scales": torch.zeros(max(columns // 128, 1), rows, dtype=torch.float16),
        f"{stem}.g_idx": torch.zeros(columns, dtype=torch.int32),
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder)


def check(checkpoint: Checkpoint) -> None:
    check_layout(checkpoint, as_stored(checkpoint, EXPECTED, TEXT))


@pytest.mark.parametrize("part", [None, "text_config", "llm_config"])
def test_a_quantised_projection_fits(tmp_path: Path, part: str | None) -> None:
    """Wherever the config says how. Oracle: the sizes of GPTQModel's buffers at 4 bits."""
    config = {"quantization_config": GPTQ}
    check(opened(tmp_path, "model.up", {part: config} if part else config))


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({"bits": 8}, "model.up.qweight is [32, 64] instead of [64, 64]"),
        ({"group_size": 64}, "model.up.scales is [2, 64] instead of [4, 64]"),
        ({"group_size": -1}, "model.up.qzeros is [2, 8] instead of [1, 8]"),
        ({"quant_method": "awq"}, "quantised by 'awq', not by gptq"),
        ({"quant_method": None}, "quantised by an unnamed method"),
        ({"bits": None}, "quantization_config.bits: None is not of type int"),
        ({"bits": 3}, "quantization_config.bits: 3 is not one of (2, 4, 8)"),
        ({"bits": True}, "quantization_config.bits: True is not of type int"),
        ({"group_size": 0}, "quantization_config.group_size: 0 is neither positive nor -1"),
        ({"group_size": -128}, "-128 is neither positive nor -1"),
        ({"group_size": "128"}, "quantization_config.group_size: '128' is not of type int"),
        ({"checkpoint_format": "marlin"}, "'marlin' is not one of 'gptq', 'gptq_v2'"),
        ({"checkpoint_format": ["gptq"]}, "['gptq'] is not one of 'gptq', 'gptq_v2'"),
        ({"format": "exllama"}, "'exllama' is not one of"),
        ({"is_marlin_format": True}, "quantization_config.is_marlin_format: True"),
        ({"pack_dtype": "int64"}, "quantization_config.pack_dtype: 'int64'"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], evidence: str
) -> None:
    """Oracle: the change made, and the sizes worked out by hand."""
    checkpoint = opened(tmp_path, "model.up", {"quantization_config": {**GPTQ, **changes}})
    with pytest.raises(CheckpointError) as caught:
        check(checkpoint)
    assert evidence in caught.value.message
    assert caught.value.hint


def test_a_quantised_vision_side_is_refused(tmp_path: Path) -> None:
    """Only the language model may be quantised; the hint says so. Oracle: the change made."""
    checkpoint = opened(tmp_path, "vision", {"quantization_config": GPTQ})
    with pytest.raises(CheckpointError, match=r"unused: vision\.g_idx, vision\.qweight") as caught:
        check(checkpoint)
    assert "only the language model may be quantised, and only by GPTQ" in caught.value.hint


def test_a_float_checkpoint_is_expected_as_it_is(tmp_path: Path) -> None:
    """Without packed tensors nothing changes, whatever the config says. Oracle: the same object."""
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"bits": "?"}}))
    save_file({"vision.weight": torch.zeros(8, 16)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert as_stored(checkpoint, EXPECTED, TEXT) is EXPECTED


def words(fields: np.ndarray[Any, Any], bits: int, subtracted: int) -> torch.Tensor:
    """Pack along axis 0, the lowest bits first, as integers of any length; wrap at 32 bits."""
    count, ones = 32 // bits, sum(1 << shift for shift in range(0, 32, bits))
    packed = [
        [
            (sum(int(value) << bits * n for n, value in enumerate(column)) - subtracted * ones)
            % 2**32
            for column in rows.T
        ]
        for rows in fields.reshape(-1, count, fields.shape[1])
    ]
    return torch.from_numpy(np.array(packed, np.uint32).view(np.int32))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("form", [None, "gptq", "gptq_v2"])
def test_levels_and_zero_points_are_read_as_their_format_says(
    tmp_path: Path, bits: int, form: str | None
) -> None:
    """Any zero point, 0 included, and inputs in any order, to ``(level - zero) * scale``.

    Oracle: the levels, zero points and scales that were packed. GPTQModel's ``gptq`` subtracts 1
    from each zero point by subtracting a word of ones, ``gptq_v2`` does not.
    """
    random, inputs, outputs, groups = np.random.RandomState(bits), 64, 32, 4
    levels = random.randint(0, 2**bits, (inputs, outputs))
    zeros = random.randint(0, 2**bits, (groups, outputs))
    scales = random.rand(groups, outputs).astype(np.float16)
    order = random.permutation(np.arange(inputs) % groups)
    packed_zeros = words(zeros.T, bits, subtracted=int(form != "gptq_v2")).T.contiguous()
    tensors = {
        "qweight": words(levels, bits, subtracted=0),
        "qzeros": packed_zeros,
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(order.astype(np.int32)),
    }
    said = {"quant_method": "gptq", "bits": bits, "group_size": inputs // groups, "desc_act": True}
    config = {"quantization_config": {**said, **({"checkpoint_format": form} if form else {})}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({f"model.up.{k}": v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        check_layout(checkpoint, as_stored(checkpoint, {"model.up.weight": (32, 64)}, TEXT))
        read = float_tensor(checkpoint, "model.up.weight")
    expected = (levels - zeros[order]) * scales[order].astype(np.float32)
    assert np.allclose(read.float().numpy(), expected.T, rtol=2e-3)


@pytest.mark.parametrize("value", [-1, 2, 2**31 - 1])
def test_an_input_without_a_scale_is_refused(tmp_path: Path, value: int) -> None:
    """A group that does not exist is found before any work. Oracle: the change made."""
    checkpoint = opened(tmp_path, "model.up", {"quantization_config": GPTQ})
    check_groups(checkpoint)
    tensors = {key: torch.from_numpy(checkpoint.array(key)) for key in checkpoint.tensors}
    tensors["model.up.g_idx"][7] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"input 7 into group {value} of 2"):
        check_groups(Checkpoint.open(tmp_path))


def test_the_floats_of_a_quantised_projection_are_its_scales(tmp_path: Path) -> None:
    """So that NaN is looked for where it can be. Oracle: the dtypes in the file."""
    checkpoint = opened(tmp_path, "model.up", {"quantization_config": GPTQ})
    text = [key for key in EXPECTED if key.startswith(TEXT)]
    assert float_sources(checkpoint, text) == {
        key
        for key, info in checkpoint.tensors.items()
        if key.startswith(TEXT) and info.dtype != "int32"
    }
