"""Stages as an installed plugin has them: their source can be found by the name of its module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Settings:
    """What a module may keep of its config."""

    scale: float = 2.0
    names: list[str] = field(default_factory=lambda: ["a", "b"])


def half(x: torch.Tensor) -> torch.Tensor:
    """Half of it."""
    return x / 2


class Scaled(nn.Module):
    """A weight on the meta device that is taken transposed, a constant, and settings."""

    def __init__(self) -> None:
        super().__init__()
        self.settings, self.turn, self.kinds = Settings(), half, {"one", "two", "three"}
        self.linear = nn.Linear(3, 5, device="meta")
        self.register_buffer("shift", torch.arange(5.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale, and shift."""
        made: torch.Tensor = self.turn(self.linear(x)) * self.settings.scale + self.shift
        return made


class Other(Scaled):
    """The same attributes, another class."""


def doubled(module: nn.Module, given: Any, made: torch.Tensor) -> torch.Tensor:
    """Twice what was made."""
    return made * 2


class Slotted(nn.Module):
    """Keeps something where `vars` does not show it."""

    __slots__ = ("hidden",)


class Telling:
    """Says itself how it is pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Telling, ()
