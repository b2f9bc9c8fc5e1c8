"""The ordinary way: transformers loads the whole model in float32, torch exports the tower.

The tower runs on transformers' default attention, which cuts the sequence into windows by Python
lists. torch's newer exporter (dynamo) refuses those, so the older one traces it, with the grid of
patches as a constant.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

SIDE_PX, PATCH_PX, VALUES = 448, 14, 1176


class Tower(torch.nn.Module):
    """The tower with its grid built in: float32 ``[N, 1176]`` patches to tokens."""

    def __init__(self, visual: torch.nn.Module, grid: torch.Tensor) -> None:
        super().__init__()
        self.visual, self.grid = visual, grid

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the merged tokens."""
        tokens: torch.Tensor = self.visual(patches, grid_thw=self.grid).pooler_output
        return tokens


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint", type=Path)
parser.add_argument("out", type=Path, help="file")
arguments = parser.parse_args()
warnings.simplefilter("ignore")

started = time.perf_counter()
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
    arguments.checkpoint, dtype=torch.float32
)
loaded = time.perf_counter()
side = SIDE_PX // PATCH_PX
with torch.no_grad():
    torch.onnx.export(
        Tower(model.model.visual, torch.tensor([[1, side, side]])),
        (torch.randn(side**2, VALUES),),
        str(arguments.out),  # a Path is taken for a buffer, which cannot hold over 2 GB
        dynamo=False,
        opset_version=17,
        input_names=["hidden_states"],
        output_names=["hidden_states_out"],
    )
exported = time.perf_counter()
print(json.dumps({"load": loaded - started, "export": exported - loaded}))
