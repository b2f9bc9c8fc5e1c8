"""Random checkpoints of the small layouts, and the family alone in a registry."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch
from safetensors.torch import save_file

from axcore import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from axcore import ModelCard


class MakeCheckpoint(Protocol):
    """Writes a checkpoint of a card's small layout; `change` overrides fields of its config."""

    def __call__(self, card: ModelCard, folder: Path, **change: Any) -> Path: ...


@pytest.fixture(scope="session")
def registry() -> Registry:
    """This family alone, whatever else is installed."""
    return Registry([EntryPoint("minicpmv", "axcore_plugins_minicpmv", "axcore")])


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """Return a writer of checkpoints whose values are large enough to show mistakes."""

    def make(card: ModelCard, folder: Path, **change: Any) -> Path:
        config = {**card.published.tiny_config, **change}
        assert card.layout.tensors is not None
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        weights = {key: value.bfloat16() for key, value in random_weights(card, config).items()}
        save_file(weights, folder / "model.safetensors")
        return folder

    return make


def random_weights(card: ModelCard, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return float32 tensors of a card's layout: norms near 1, biases and matrices around 0."""
    generator = torch.Generator().manual_seed(5)
    assert card.layout.tensors is not None
    found = {}
    for key, shape in card.layout.tensors(config).items():
        centre = 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0
        spread = 0.2 if len(shape) == 1 else shape[-1] ** -0.5
        found[key] = centre + spread * torch.randn(shape, generator=generator)
    return found
