"""The language side: scales folded into a plain Llama, embedding, arguments and remarks."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from axcore import Options, plan
from axcore.checkpoint import Checkpoint
from axcore.language.checkpoint import write_checkpoint
from axcore.language.embedding import write_embedding
from axcore.pipeline.job import open_job
from axcore.progress import Silent
from axcore.request import Request
from axcore_plugins_minicpmv import embed_extract, llm_build_args, v2, v4

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from axcore import Job, Registry

    from .conftest import MakeCheckpoint

V4, V2 = v4.card(), v2.card()
FOLD = {"fold-scales": "yes"}


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MiniCPM-V-2."""
    return make_checkpoint(V2, tmp_path_factory.mktemp("v2") / "checkpoint")


def job_of(folder: Path, registry: Registry, **choices: str) -> Job:
    request = Request.of(str(folder), options=Options(choices=choices))
    return open_job(request, registry, Silent())


@pytest.fixture(scope="module")
def folded(folder: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builder gets of it: a folder of its own."""
    job = job_of(folder, registry, **FOLD)
    wanted, out = llm_build_args(job).checkpoint, tmp_path_factory.mktemp("folded") / "llm"
    assert wanted is not None
    write_checkpoint(job.checkpoint, wanted, out, Silent())
    return out


def scaled_model(
    w: Mapping[str, Tensor], config: Mapping[str, Any], ids: Tensor, *, scaled: bool = True
) -> Tensor:
    """The oracle: MiniCPM's decoder written out, with its scales where the published code has them.

    Args:
        w: Tensors by key, without ``llm.``.
        config: The checkpoint's config.
        ids: int64 ``[n]``.
        scaled: Whether to scale; a plain Llama does not.

    Returns:
        Logits, float32 ``[n, vocabulary]``.
    """
    heads, count = config["num_attention_heads"], len(ids)
    residual = config["scale_depth"] / math.sqrt(config["num_hidden_layers"]) if scaled else 1
    angles = torch.arange(count)[:, None] * 10_000.0 ** (-torch.arange(0, 64, 2) / 64)
    cos, sin = (torch.cat([part, part], -1)[:, None] for part in (angles.cos(), angles.sin()))
    hidden_from = torch.full((count, count), -torch.inf).triu(1)

    def norm(x: Tensor, key: str) -> Tensor:
        size: Tensor = (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()
        return w[key] * x / size

    def split(x: Tensor, *, rotated: bool) -> Tensor:
        x = x.reshape(count, heads, -1)
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return (x * cos + turned * sin if rotated else x).transpose(0, 1)

    def attention(x: Tensor, layer: str) -> Tensor:
        q, k, v = (
            split(x @ w[f"{layer}self_attn.{part}_proj.weight"].T, rotated=part != "v")
            for part in "qkv"
        )
        scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + hidden_from).softmax(-1)
        seen = (scores @ v).transpose(0, 1).reshape(count, -1)
        return seen @ w[f"{layer}self_attn.o_proj.weight"].T

    def mlp(x: Tensor, layer: str) -> Tensor:
        gate, up, down = (w[f"{layer}mlp.{part}_proj.weight"].T for part in ("gate", "up", "down"))
        return (F.silu(x @ gate) * (x @ up)) @ down

    x = w["model.embed_tokens.weight"][ids] * (config["scale_emb"] if scaled else 1)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        x = x + residual * attention(norm(x, layer + "input_layernorm.weight"), layer)
        x = x + residual * mlp(norm(x, layer + "post_attention_layernorm.weight"), layer)
    narrow = config["hidden_size"] / config["dim_model_base"] if scaled else 1
    logits: Tensor = norm(x, "model.norm.weight") / narrow @ w["lm_head.weight"].T
    return logits


def stored(folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint's language model in float32."""
    tensors = load_file(folder / "model.safetensors")
    return {k.removeprefix("llm."): v.float() for k, v in tensors.items() if k.startswith("llm.")}


def test_a_folded_model_gives_the_logits_of_the_scaled_one(folder: Path, folded: Path) -> None:
    """Random ids, float32, at most 1e-4 apart; without the scales they would differ widely.

    Oracle: the scaled decoder written out above; transformers' Llama reads what was written.
    """
    weights, config = stored(folder), json.loads((folder / "config.json").read_text())
    ids = torch.randint(config["vocab_size"], (40,), generator=torch.Generator().manual_seed(8))
    loaded: Any = LlamaForCausalLM.from_pretrained(
        folded, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        made = model(ids[None]).logits[0]
    expected = scaled_model(weights, config, ids)
    assert (made - expected).abs().max() <= 1e-4
    assert (expected - scaled_model(weights, config, ids, scaled=False)).abs().max() > 0.1


def test_the_oracle_is_a_llama_where_nothing_is_scaled(folder: Path, folded: Path) -> None:
    """The written-out decoder without scales. Oracle: transformers' Llama on the folded tensors."""
    tensors = {k: v.float() for k, v in load_file(folded / "model.safetensors").items()}
    config, ids = json.loads((folder / "config.json").read_text()), torch.arange(20)
    model = LlamaForCausalLM.from_pretrained(folded, dtype=torch.float32)
    with torch.no_grad():
        made = model(ids[None]).logits[0]
    torch.testing.assert_close(made, scaled_model(tensors, config, ids, scaled=False))


def test_published_scales() -> None:
    """The triplet at published size. Oracle: 12, 1.4 / sqrt(40), 256 / 2304."""
    assert v2.scales(V2.published.config) == pytest.approx(
        {"embed_tokens": 12, "o_proj": 0.2213594, "down_proj": 0.2213594, "lm_head": 1 / 9}
    )


def test_only_scaled_tensors_change_their_type(folded: Path) -> None:
    """Norms, queries, keys, values, gates keep their bytes. Oracle: the list of what is scaled."""
    for name, tensor in load_file(folded / "model.safetensors").items():
        scaled = name.split(".")[-2] in ("embed_tokens", "o_proj", "down_proj", "lm_head")
        assert tensor.dtype == (torch.float32 if scaled else torch.bfloat16), name


@pytest.mark.parametrize("fold", ["no", "yes"])
def test_embedding_rows_are_what_the_built_model_takes(
    folder: Path, registry: Registry, tmp_path: Path, fold: str
) -> None:
    """Raw with the scale named, or multiplied with none left. Oracle: torch, rounded once."""
    job = job_of(folder, registry, **{"fold-scales": fold})
    embedding = embed_extract(job)
    assert embedding is not None
    write_embedding(job.checkpoint, embedding, tmp_path, ["npy"], Silent())
    table = stored(folder)["model.embed_tokens.weight"] * (12 if fold == "yes" else 1)
    raw = (tmp_path / "model.embed_tokens.weight.bfloat16.bin").read_bytes()
    assert raw == table.bfloat16().view(torch.uint8).numpy().tobytes()
    assert embedding.scale == (1 if fold == "yes" else 12)


def test_other_models_keep_the_default_embedding(
    registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """V-4 scales nothing, and the plan of its table is found by name. Oracle: its config."""
    folder = make_checkpoint(V4, tmp_path / "v4")
    assert embed_extract(job_of(folder, registry)) is None
    names = {file.name for file in plan(str(folder), registry=registry).files}
    assert "model.embed_tokens.weight.bfloat16.bin" in names


def test_the_plan_counts_what_folding_writes(folder: Path, registry: Registry) -> None:
    """Disk needed by llm/. Oracle: bytes by hand, four for what is scaled and two for the rest."""
    made = plan(str(folder), options=Options(choices=FOLD), registry=registry)
    (size,) = (file.bytes for file in made.files if file.name.startswith("llm/"))
    with Checkpoint.open(folder) as checkpoint:
        values = {
            key: math.prod(info.shape)
            for key, info in checkpoint.tensors.items()
            if key.startswith("llm.")
        }
    wide = ("embed_tokens", "o_proj", "down_proj", "lm_head")
    assert size == sum(n * (4 if k.split(".")[-2] in wide else 2) for k, n in values.items())
    assert made.prepared_files["build.sh"].count("${CHECKPOINT:-llm}") == 1


def test_what_is_unknown_of_the_builder_is_said(
    folder: Path, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Scales where they are not folded, longrope, slices. Oracle: the words and numbers."""
    (plain,) = llm_build_args(job_of(folder, registry)).notes
    assert all(text in plain for text in ("by 12", "by 0.9899495", "by 4", "--fold-scales"))
    (done,) = llm_build_args(job_of(folder, registry, **FOLD)).notes
    assert "multiplied by 12 already" in done
    job = job_of(make_checkpoint(V4, tmp_path / "v4"), registry, fit="slice")
    notes = "\n".join(llm_build_args(job).notes)
    assert all(text in notes for text in ("longrope", "LlamaForCausalLM", "640", "quant.device"))
    plain_rope = make_checkpoint(V4, tmp_path / "plain", rope_scaling=None)
    assert "longrope" not in "\n".join(llm_build_args(job_of(plain_rope, registry)).notes)


@pytest.mark.parametrize("card", [V4, V2], ids=["v4", "v2"])
def test_published_lengths(card: Any) -> None:
    """P320, C1023. Oracle: the published builds."""
    (profile,) = card.profiles.values()
    assert (profile.prefill_len, profile.kv_cache_len) == (320, 1023)
