"""The language model is taken out of a checkpoint under the names of one that stands alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from axcore import Job, Layout, ModelCard, Options, Profile, Registry, Silent, UnsupportedModel
from axcore.checkpoint import Checkpoint, fabricate
from axcore.checkpoint.quantised import float_keys
from axcore.language.standalone import folded_scale, standalone_names
from axcore.pipeline.job import open_job
from axcore.quantization.language import language_of
from axcore.request import Request

if TYPE_CHECKING:
    from pathlib import Path

PROFILE = Profile(height=28, width=28, prefill_len=8, kv_cache_len=15)
LAYOUT = Layout(text_prefixes=("llm.", "mtp."))
CARD = ModelCard("toy", "x/Toy", ("Toy",), {"image": PROFILE})


def job(folder: Path, *keys: str, **layout: Any) -> Job:
    """Return a job whose checkpoint holds tensors of these keys, a number each."""
    (folder / "config.json").write_text(json.dumps({"architectures": ["Toy"]}))
    save_file({key: torch.zeros(1) for key in keys}, folder / "model.safetensors")
    described = replace(CARD, layout=replace(LAYOUT, **layout))
    return Job(described, "toy", Checkpoint.open(folder), "image", PROFILE, Options())


def test_a_quantised_projection_is_one_tensor(tmp_path: Path) -> None:
    """Packed integers and what belongs to them stand for a weight. Oracle: GPTQ's names."""
    stem = "llm.model.layers.0.mlp.up_proj"
    packed = [f"{stem}.{part}" for part in ("g_idx", "qweight", "qzeros", "scales")]
    toy = job(tmp_path, "llm.model.embed_tokens.weight", "llm.model.norm.weight", *packed)
    assert f"{stem}.weight" in float_keys(toy.checkpoint)
    assert standalone_names(toy, "llm.model.embed_tokens.weight") == {
        "model.embed_tokens.weight": "llm.model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight": f"{stem}.weight",
        "model.norm.weight": "llm.model.norm.weight",
    }


def test_a_head_may_be_the_embedding(tmp_path: Path) -> None:
    """It then has the name of an embedding, and there is no head. Oracle: a plain tied model."""
    toy = job(tmp_path, "llm.lm_head.weight", "llm.model.norm.weight")
    assert standalone_names(toy, "llm.lm_head.weight") == {
        "model.embed_tokens.weight": "llm.lm_head.weight",
        "model.norm.weight": "llm.model.norm.weight",
    }


def test_spare_tensors_are_left_out(tmp_path: Path) -> None:
    """As of heads that predict further tokens, where the card says that they are not used."""
    toy = job(tmp_path, "llm.model.norm.weight", "mtp.norm.weight", spare=("mtp.",))
    names = standalone_names(toy, "llm.model.embed_tokens.weight")
    assert names == {"model.norm.weight": "llm.model.norm.weight"}


def test_scales_go_into_what_is_scaled() -> None:
    """Oracle: 1.4 / sqrt(40) and 256 / 2304, the published numbers of MiniCPM-2B's shape."""
    config = {
        "scale_depth": 1.4, "num_hidden_layers": 40, "dim_model_base": 256, "hidden_size": 2304,
    }  # fmt: skip
    residual = pytest.approx(1.4 / math.sqrt(40))
    assert folded_scale("model.layers.3.self_attn.o_proj.weight", config) == residual
    assert folded_scale("model.layers.3.mlp.down_proj.weight", config) == residual
    assert folded_scale("lm_head.weight", config) == pytest.approx(1 / 9)
    assert folded_scale("model.layers.3.mlp.up_proj.weight", config) == 1
    assert folded_scale("lm_head.weight", {"hidden_size": 2304}) == 1


def test_a_model_with_scales_is_not_quantised(tmp_path: Path) -> None:
    """A plain class would be quantised without them. Oracle: two layers and the head."""
    registry = Registry()
    checkpoint = fabricate(registry.find("minicpm-v-2").card, "tiny", tmp_path / "checkpoint")
    opened = open_job(Request.of(str(checkpoint)), registry, Silent())
    with pytest.raises(UnsupportedModel, match="scales the outputs of 5 tensors") as caught:
        language_of(opened, registry)
    assert caught.value.hint
