"""A stand-in for gptqmodel: rounds to nearest, packs number by number, and is as noisy.

It refuses what the real one would run code for: a repository's tokenizer in the model folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file


class QuantizeConfig:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class GPTQModel:
    folder: Path
    settings: dict[str, Any]
    layer_callback: Any = None

    @classmethod
    def load(cls, folder: str, config: QuantizeConfig, device: str) -> GPTQModel:
        assert device == "cpu"
        tokenizer = json.loads((Path(folder) / "tokenizer_config.json").read_text())
        assert tokenizer["pad_token"] == "<pad>"
        assert "auto_map" not in tokenizer
        assert not list(Path(folder).glob("*.py"))
        self = cls()
        self.folder, self.settings = Path(folder), config.settings
        return self

    def quantize(self, rows: list[dict[str, list[int]]], batch_size: int) -> None:
        assert batch_size == 1
        assert all(len(row["input_ids"]) == len(row["attention_mask"]) for row in rows)
        sys.stdout.write("a bar of progress \u2591\u2591\u2591\n")
        layers = json.loads((self.folder / "config.json").read_text())["num_hidden_layers"]
        for index in range(layers):
            for finalized in (False, True):
                self.layer_callback(layer_idx=index, submodule_finalized=finalized)

    def save(self, out: str) -> None:
        bits, group = self.settings["bits"], self.settings["group_size"]
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(self.folder / "model.safetensors").items():
            if tensor.ndim == 2 and ".layers." in name:
                packed = pack(tensor.float().numpy(), bits, group)
                stem = name.removesuffix("weight")
                tensors |= {stem + part: torch.from_numpy(array) for part, array in packed.items()}
            else:
                tensors[name] = tensor
        Path(out).mkdir()
        save_file(tensors, Path(out) / "model.safetensors")
        said = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "sym": True,
            "desc_act": False,
            "meta": {"quantizer": ["standin:1"], "offload_to_disk_path": "/somewhere"},
        }
        (Path(out) / "config.json").write_text(json.dumps({"quantization_config": said}))


def pack(weight: np.ndarray, bits: int, group: int) -> dict[str, np.ndarray]:
    """Round ``[outputs, inputs]`` to nearest, symmetrically around the middle level."""
    outputs, inputs = weight.shape
    middle, per_word = 2 ** (bits - 1), 32 // bits
    scales = np.zeros((inputs // group, outputs), np.float16)
    qweight = np.zeros((inputs // per_word, outputs), np.uint32)
    for row in range(outputs):
        for start in range(0, inputs, group):
            values = weight[row, start : start + group]
            scale = np.float16(np.abs(values).max() / (middle - 1) or 1)
            scales[start // group, row] = scale
            for column, value in enumerate(values, start):
                level = int(np.clip(np.rint(value / np.float32(scale)) + middle, 0, 2**bits - 1))
                shift = np.uint32(bits * (column % per_word))
                qweight[column // per_word, row] |= np.uint32(level) << shift
    zero = sum((middle - 1) << (bits * i) for i in range(per_word))
    qzeros = np.full((inputs // group, outputs // per_word), zero, np.uint32)
    g_idx = np.array([column // group for column in range(inputs)], np.int32)
    return {
        "qweight": qweight.view(np.int32),
        "qzeros": qzeros.view(np.int32),
        "scales": scales,
        "g_idx": g_idx,
    }
