"""A language model's own checkpoint, read back by safetensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from axcore.checkpoint import Checkpoint
from axcore.language.checkpoint import checkpoint_bytes, write_checkpoint
from axcore.language_model import LlmCheckpoint
from axcore.progress import Silent

if TYPE_CHECKING:
    from pathlib import Path


def test_tensors_are_renamed_copied_or_scaled_in_float32(tmp_path: Path) -> None:
    """Oracle: safetensors reads the file, torch multiplies."""
    folder = tmp_path / "in"
    folder.mkdir()
    tensors = {"llm.a": torch.randn(300, 7).bfloat16(), "llm.b": torch.randn(5).half()}
    save_file({**tensors, "vision.c": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["Foo"]}))
    (folder / "tokenizer.json").write_text("{}")
    wanted = LlmCheckpoint({"model_type": "foo"}, {"a": ("llm.a", 0.3), "b": ("llm.b", 1)})
    with Checkpoint.open(folder) as checkpoint:
        write_checkpoint(checkpoint, wanted, tmp_path / "out", Silent())
        assert checkpoint_bytes(checkpoint, wanted) == 300 * 7 * 4 + 5 * 2
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == {"a", "b"}
    assert torch.equal(written["a"], tensors["llm.a"].float() * 0.3)
    assert torch.equal(written["b"], tensors["llm.b"])
    assert written["b"].dtype == torch.float16
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "foo"}
    assert (tmp_path / "out/tokenizer.json").exists()
