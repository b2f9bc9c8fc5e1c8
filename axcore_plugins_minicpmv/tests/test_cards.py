"""What the cards of MiniCPM-V-4 and MiniCPM-V-2 promise, and which checkpoints are refused."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from axcore import CheckpointError, UnsupportedModel, plan
from axcore_plugins_minicpmv import v2, v4, versions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from axcore import ModelCard, Registry, Shape

    from .conftest import MakeCheckpoint

V4, V2 = v4.card(), v2.card()


def shapes(card: ModelCard) -> Mapping[str, Shape]:
    assert card.layout.tensors is not None
    return card.layout.tensors(card.published.config)


@pytest.mark.parametrize(
    ("card", "count", "bytes_", "parts"),
    [
        (V4, 741, 4_966_420_480 + 3_152_645_600, (3_605_834_240, 417_792_240, 35_906_560)),
        (V2, 694, 6_869_931_584, (3_007_703_808, 397_747_744, 29_514_240)),
    ],
    ids=["v4", "v2"],
)
def test_the_tensors_add_up_to_the_published_checkpoint(
    card: ModelCard, count: int, bytes_: int, parts: tuple[int, ...]
) -> None:
    """Number of tensors, bytes in bfloat16; parameters of language model, tower and resampler.

    Oracle: the published figures, and the published files, whose headers take a part of V-4's
    bytes.
    """
    sizes = {key: math.prod(shape) for key, shape in shapes(card).items()}
    assert len(sizes) == count
    assert sum(sizes.values()) == card.parameters
    assert 0 <= bytes_ - 2 * card.parameters < 200_000
    for prefix, size in zip(("llm.", "vpm.", "resampler."), parts, strict=True):
        assert sum(n for key, n in sizes.items() if key.startswith(prefix)) == size


@pytest.mark.parametrize("card", [V4, V2], ids=["v4", "v2"])
def test_the_language_model_is_llama_shaped(card: ModelCard) -> None:
    """Names and shapes at full size, `head_dim` included. Oracle: transformers' Llama."""
    known = {key: value for key, value in card.published.config.items() if key != "architectures"}
    config = LlamaConfig(**{**known, "model_type": "llama"})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    expected = {f"llm.{name}": tuple(value.shape) for name, value in model.named_parameters()}
    assert {k: s for k, s in shapes(card).items() if k.startswith("llm.")} == expected


def test_stretched_positions_are_in_the_config() -> None:
    """Rotary frequencies that transformers derives from the published config.

    Oracle: the formula of longrope, one factor per frequency; the slowest is 31 times slower.
    """
    config = LlamaConfig(**{**V4.published.config, "model_type": "llama"})
    made = LlamaRotaryEmbedding(config).inv_freq
    plain = 10_000.0 ** (-torch.arange(0, 128, 2) / 128)
    factors = torch.tensor(V4.published.config["rope_scaling"]["short_factor"])
    torch.testing.assert_close(made, plain / factors)
    assert (
        V4.published.config["rope_scaling"]["long_factor"]
        == V4.published.config["rope_scaling"]["short_factor"]
    )
    assert (plain / made)[-1] == pytest.approx(31.0239, abs=1e-3)


# Recognition -------------------------------------------------------------------------------------


def described(**fields: Any) -> dict[str, Any]:
    return {"architectures": ["MiniCPMV"], "model_type": "minicpmv", **fields}


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (V4.published.config, "minicpm-v-4"),
        (V4.published.tiny_config, "minicpm-v-4"),
        (described(version="4.0", query_num=64), "minicpm-v-4"),
        (V2.published.config, "minicpm-v-2"),
        (V2.published.tiny_config, "minicpm-v-2"),
    ],
)
def test_a_config_tells_the_model(
    registry: Registry, config: Mapping[str, Any], model: str
) -> None:
    """V-2 and V-4 are never confused. Oracle: the published configs."""
    assert registry.recognise(config, "config.json").card.id == model


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (described(version=2.5, query_num=96, hidden_size=4096), "MiniCPM-Llama3-V-2_5"),
        (described(version=2.6, query_num=64, hidden_size=3584), "MiniCPM-V-2_6"),
        (described(version=4.5, query_num=64, hidden_size=4096), "MiniCPM-V-4_5"),
        ({"architectures": ["MiniCPMO"], "version": "2.6"}, "MiniCPM-o-2_6"),
        ({"architectures": ["MiniCPMO"], "version": "4.5"}, "MiniCPM-o-4_5"),
    ],
)
def test_relatives_are_refused_by_name(
    registry: Registry, config: Mapping[str, Any], name: str
) -> None:
    """The message names the model, the hint what is supported. Oracle: published versions."""
    with pytest.raises(UnsupportedModel, match=name) as caught:
        registry.recognise(config, "config.json")
    assert "MiniCPM-V-4" in caught.value.hint


@pytest.mark.parametrize("text", [None, "", "latest", [4]])
def test_a_version_that_is_no_number_is_none(text: object) -> None:
    """Oracle: nothing there compares equal to a published version."""
    assert versions.version({"version": text}) is None


@pytest.mark.parametrize(("asked", "given"), [(V4, V2), (V2, V4)], ids=["v4", "v2"])
def test_a_checkpoint_of_the_other_model_is_refused(
    registry: Registry,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    asked: ModelCard,
    given: ModelCard,
) -> None:
    """Named by id, with the other's folder. Oracle: the words of the message."""
    folder = make_checkpoint(given, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=f"another MiniCPMV than `{asked.id}`"):
        plan(asked.id, checkpoint=str(folder), registry=registry)


def test_an_unknown_tower_is_named(
    registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """V-2's config names its tower and nothing else. Oracle: a name that timm does not have."""
    folder = make_checkpoint(V2, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_encoder": "vit_odd"}))
    with pytest.raises(CheckpointError, match="vit_odd"):
        plan(str(folder), registry=registry)
