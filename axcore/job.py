"""One conversion, as every hook is given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .model_config import text_config

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .model_card import ModelCard, Profile
    from .request import Options


@dataclass(frozen=True)
class Job:
    """One conversion: what every hook is given.

    Attributes:
        card: The model, as its family describes it.
        family: The plugin's entry-point name.
        checkpoint: Config and lazily read tensors, under canonical keys.
        task: Name of the profile in use.
        profile: The profile with the user's changes applied.
        options: What the user chose.
        target: The device that is built for, in the toolchain's spelling, such as ``AX650``.
    """

    card: ModelCard
    family: str
    checkpoint: Checkpoint
    task: str
    profile: Profile
    options: Options
    target: str = ""

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's ``config.json``."""
        return self.checkpoint.config

    def choice(self, name: str) -> str:
        """Return the value of an option of this model: the user's, or the card's default."""
        return self.options.choices.get(name, self.card.choices[name].values[0])

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the config: nested in some layouts, flat in others."""
        return text_config(self.config)

    @property
    def text_width(self) -> int:
        """Hidden size of the language model."""
        return int(self.text_config["hidden_size"])
