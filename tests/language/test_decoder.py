"""The default decoder computes what a config says, or refuses it by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from axcore import (
    Decoder,
    Job,
    Layout,
    ModelCard,
    Options,
    Profile,
    UnsupportedModel,
    llama_tensors,
)
from axcore.checkpoint import Checkpoint
from axcore.language.decoder import default_decoder
from axcore.language.embedding import default_embedding

CONFIG: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32,
}
PROFILE = Profile(height=28, width=28, prefill_len=64, kv_cache_len=1023)


def job_of(folder: Path, changes: dict[str, Any]) -> Job:
    shapes = llama_tensors(CONFIG).items()
    save_file({name: torch.zeros(shape) for name, shape in shapes}, folder / "model.safetensors")
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    card = ModelCard("toy", "a/toy", ("Toy",), {"image": PROFILE}, layout=Layout())
    return Job(card, "toy", Checkpoint.open(folder), "image", PROFILE, Options())


def decoder_of(job: Job) -> Decoder:
    return default_decoder(job, default_embedding(job))


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({"hidden_act": "relu"}, "the activation 'relu'"),
        ({"use_sliding_window": True}, "`use_sliding_window` True"),
        ({"sliding_window": 512}, "`sliding_window` 512"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotation of 0.5 of the 4 values"),
        ({"partial_rotary_factor": 0.25}, "`partial_rotary_factor` 0.25"),
        ({"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` 50.0"),
        ({"final_logit_softcapping": 30.0}, "`final_logit_softcapping` 30.0"),
        ({"query_pre_attn_scalar": 256}, "`query_pre_attn_scalar` 256"),
        ({"residual_multiplier": 0.22}, "`residual_multiplier` 0.22"),
        ({"rms_norm_eps": None}, "no 'rms_norm_eps' in its config"),
        ({"rms_norm_eps": "absent"}, "no 'rms_norm_eps' in its config"),
        ({"rope_scaling": {"type": "linear"}}, "no 'factor' in its config"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "positions scaled by `yarn`"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "1 factors for the 2"),
        ({"rope_scaling": {"mrope_section": [1, 1]}}, "mrope_section"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(
    tmp_path: Path, changes: dict[str, Any], evidence: str
) -> None:
    """By name, before anything is traced. Oracle: the change made to a config that is accepted."""
    with pytest.raises(UnsupportedModel) as caught:
        decoder_of(job_of(tmp_path, changes))
    assert evidence in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 32768, "use_sliding_window": False, "model_type": "qwen2"},
        {"sliding_window": 2048, "model_type": "mistral"},
        {"sliding_window": None, "model_type": "mistral"},
        {"logits_scaling": 1.0, "attn_logit_softcapping": None, "head_dim": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": None},
    ],
)
def test_settings_that_change_nothing_are_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    """As published configs spell them. Oracle: the layers and width of the config."""
    decoder = decoder_of(job_of(tmp_path, changes))
    assert (len(decoder.layers), decoder.width) == (2, 16)


def test_a_longer_context_meets_the_window(tmp_path: Path) -> None:
    """A window matters from the context on that exceeds it; oracle: both lengths."""
    job = job_of(tmp_path, {"sliding_window": 2048, "model_type": "mistral"})
    longer = replace(job, profile=replace(PROFILE, kv_cache_len=2048))
    found = [{spec.window for spec in decoder_of(one).specs} for one in (job, longer)]
    assert found == [{None}, {2048}]
