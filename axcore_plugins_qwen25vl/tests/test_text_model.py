"""The language model alone, as quantising takes it out, is the one inside the whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from axcore import Silent
from axcore.language.checkpoint import write_checkpoint
from axcore.pipeline.job import open_job
from axcore.quantization.language import language_of
from axcore.request import Request

from .conftest import CARD

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Registry


@pytest.mark.parametrize("saved_anew", [False, True])
def test_text_gives_the_same_logits(registry: Registry, tmp_path: Path, saved_anew: bool) -> None:
    """Plain rotation for rotation in three rows, for the published and for the newer layout of
    config.json. Oracle: transformers' class of the whole on the same tokens.
    """
    from transformers import AutoModelForCausalLM, Qwen2_5_VLConfig
    from transformers import Qwen2_5_VLForConditionalGeneration as Whole

    config = {**CARD.published.tiny_config, "torch_dtype": "float32"}
    torch.manual_seed(3)
    whole: Any = Whole(Qwen2_5_VLConfig(**config))
    whole.eval()
    with torch.no_grad():
        for parameter in whole.model.language_model.parameters():
            parameter.mul_(3)  # so that attention, and with it the rotation, matters
    folder = tmp_path / "whole"
    if saved_anew:
        whole.save_pretrained(folder)
    else:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {key: t.contiguous() for key, t in whole.state_dict().items() if "lm_" not in key}
        save_file(tensors, folder / "model.safetensors")
    job = open_job(Request.of(str(folder)), registry, Silent())
    with job.checkpoint:
        language = language_of(job, registry)
        write_checkpoint(job.checkpoint, language.checkpoint, tmp_path / "text", Silent(), ())
    text: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32)
    tokens = torch.arange(3, 103)[None]
    with torch.inference_mode():
        expected, found = whole(tokens).logits, text(tokens).logits
    assert type(text).__name__ == "Qwen2ForCausalLM"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
