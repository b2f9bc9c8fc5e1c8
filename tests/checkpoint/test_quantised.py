"""A language model quantised by GPTQ is held against the float layout it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from axcore.checkpoint import Checkpoint, as_stored, check_layout
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
        ({"quant_method": "awq"}, "quantised by awq, not by gptq"),
        ({"quant_method": None}, "quantised by an unnamed method"),
        ({"bits": None}, "lacks bits or group_size"),
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
