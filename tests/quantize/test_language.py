"""The language model is taken out of every layout under the names of a plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from axcore.checkpoint import Checkpoint
from axcore.errors import CheckpointError, UnsupportedModel, UsageError
from axcore.pipeline.job import open_job
from axcore.progress import Silent
from axcore.quantization.language import check_group_size, language_of
from axcore.request import Request

from . import toy

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Job, Registry

CLASSES = {"flat": "Qwen2ForCausalLM", "prefixed": "LlamaForCausalLM", "nested": "Qwen3ForCausalLM"}


def job_of(folder: Path, registry: Registry) -> Job:
    return open_job(Request.of(str(folder)), registry, Silent())


@pytest.fixture
def flat(checkpoints: dict[str, Path], registry: Registry) -> Job:
    return job_of(checkpoints["flat"], registry)


@pytest.mark.parametrize("name", toy.CONFIGS)
def test_the_names_are_those_of_the_class(
    checkpoints: dict[str, Path], registry: Registry, name: str
) -> None:
    """Oracle: transformers, which builds the class from the config and lists its parameters."""
    import transformers

    language = language_of(job_of(checkpoints[name], registry), registry)
    config = language.checkpoint.config
    kind = getattr(transformers, CLASSES[name])
    assert config["architectures"] == [CLASSES[name]]
    model = kind(kind.config_class(**config))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    assert language.checkpoint.tensors.keys() == shapes.keys()
    linears = {f"{key}.weight" for key, module in model.model.named_modules()
               if type(module).__name__ == "Linear"}  # fmt: skip
    assert language.matrices == {f"model.{key}": shapes[f"model.{key}"] for key in linears}


def test_a_config_loses_what_is_not_of_text(
    flat: Job, checkpoints: dict[str, Path], registry: Registry
) -> None:
    """Oracle: the toy configs: rotary positions go where the card says so and stay elsewhere."""
    config = language_of(flat, registry).checkpoint.config
    assert not {"vision_config", "auto_map", "rope_scaling"} & config.keys()
    assert config["tie_word_embeddings"] is True
    prefixed = language_of(job_of(checkpoints["prefixed"], registry), registry).checkpoint.config
    assert prefixed["rope_scaling"] == toy.LONGROPE
    assert "slice_config" not in prefixed
    assert prefixed["tie_word_embeddings"] is False


@pytest.mark.parametrize("size", [16, 32, 64, -1])
def test_groups_that_divide_every_width_are_taken(flat: Job, registry: Registry, size: int) -> None:
    """Oracle: 64 and 128, the widths of the toy."""
    check_group_size(language_of(flat, registry), size)


@pytest.mark.parametrize(
    ("size", "evidence"),
    [
        (128, "groups of 128 do not divide the 64 inputs of `model.layers.0."),
        (48, "groups of 48 do not divide"),
        (8, "groups of 8 are not offered"),
        (0, "groups of 0 are not offered"),
        (-2, "groups of -2 are not offered"),
    ],
)
def test_other_groups_are_refused_with_those_that_fit(
    flat: Job, registry: Registry, size: int, evidence: str
) -> None:
    """Oracle: 64 and 128, the widths of the toy."""
    with pytest.raises(UsageError) as caught:
        check_group_size(language_of(flat, registry), size)
    assert evidence in caught.value.message
    assert "16, 32, 64, -1" in caught.value.hint


def refused(job: Job, registry: Registry, **layout: Any) -> str:
    card = replace(job.card, layout=replace(job.card.layout, **layout))
    with pytest.raises((UnsupportedModel, CheckpointError)) as caught:
        language_of(replace(job, card=card), registry)
    assert caught.value.hint
    return caught.value.message


def test_a_language_model_without_plain_class_is_refused(flat: Job, registry: Registry) -> None:
    """Where the card is silent, the architecture is of the whole. Oracle: the toy config."""
    assert "architecture of that part: ToyFlat" in refused(flat, registry, text_model={})


def test_a_tensor_of_unknown_use_is_refused(
    checkpoints: dict[str, Path], registry: Registry
) -> None:
    """As of layers that predict further tokens. Oracle: the prefix added to the card."""
    job = job_of(checkpoints["prefixed"], registry)
    message = refused(job, registry, text_prefixes=("llm.", "visual."))
    assert "2 tensors of the language model are neither below `llm.model.` nor" in message
    assert "visual.weight" in message or "visual.bias" in message


def test_a_quantised_checkpoint_is_not_quantised_again(flat: Job, registry: Registry) -> None:
    """Oracle: the packed key put beside the others."""
    source = flat.checkpoint
    info = source.info("model.norm.weight")
    packed = {**source.tensors, "model.layers.0.mlp.up_proj.qweight": info}
    changed = Checkpoint(source.folder, source.config, (), packed)
    message = refused(replace(flat, checkpoint=changed), registry)
    assert "quantised already: 1 packed matrices" in message
