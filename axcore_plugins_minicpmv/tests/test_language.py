"""The language side: scales folded into a plain Llama, embedding, arguments and remarks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from axcore import Options, plan
from axcore.language.checkpoint import write_checkpoint
from axcore.language.embedding import write_embedding
from axcore.pipeline.job import open_job
from axcore.progress import Silent
from axcore.request import Request
from axcore_plugins_minicpmv import embed_extract, llm_build_args, v2, v4

from .conftest import llama

if TYPE_CHECKING:
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


def test_the_vision_side_alone_folds_nothing(folder: Path, registry: Registry) -> None:
    """No tensor of the language model is asked for, none written. Oracle: the checkpoint alone."""
    planned = plan(folder, vision_only=True, choices=FOLD, registry=registry)
    assert not [file.name for file in planned.files if file.name.startswith("llm")]
    assert not [note for note in planned.notes if "folded" in note]


def test_a_plan_names_the_checkpoint(folder: Path, registry: Registry) -> None:
    """Not the folder that the builder will read. Oracle: where it lies."""
    planned = plan(folder, choices=FOLD, registry=registry)
    assert planned.checkpoint == str(folder)
    assert [file.name for file in planned.files if file.name.startswith("llm")]


def test_a_folded_model_gives_the_logits_of_the_scaled_one(folder: Path, folded: Path) -> None:
    """Random ids, float32, at most 1e-4 apart; without the scales they would differ widely.

    Oracle: transformers' Llama with the scales where the published code has them; its plain form
    reads what was written.
    """
    stored = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    ids = torch.randint(config["vocab_size"], (1, 40), generator=torch.Generator().manual_seed(8))
    loaded: Any = LlamaForCausalLM.from_pretrained(
        folded, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    unscaled = {key: value for key, value in config.items() if key != "scale_emb"}
    with torch.no_grad():
        made, expected, plain = (
            one(ids).logits for one in (model, llama(config, stored), llama(unscaled, stored))
        )
    assert (made - expected).abs().max() <= 1e-4
    assert (expected - plain).abs().max() > 0.1


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
    table = load_file(folder / "model.safetensors")["llm.model.embed_tokens.weight"].float()
    table *= 12 if fold == "yes" else 1
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


def test_the_plan_counts_what_folding_writes(
    folder: Path, folded: Path, registry: Registry
) -> None:
    """Disk needed by llm/. Oracle: the tensors that are written."""
    made = plan(str(folder), options=Options(choices=FOLD), registry=registry)
    (size,) = (file.bytes for file in made.files if file.name.startswith("llm/"))
    assert size == sum(t.nbytes for t in load_file(folded / "model.safetensors").values())


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
