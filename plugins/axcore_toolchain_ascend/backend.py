"""Backends for Ascend cards: vision graphs behind an engine, the language model in PyTorch."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from axcore import Availability, Choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore.runtime.deployment import Deployment
    from axcore.runtime.language import LanguageModel
    from axcore.runtime.vision import VisionModel

_OPTIONS: dict[str, Choice] = {
    "decoder-device": Choice(
        ("npu", "cpu"), "where the language model runs: on the card, or on the host beside it"
    ),
    "dtype": Choice(
        ("float16", "float32", "bfloat16"),
        "precision of the language model; float16 is what every card has",
    ),
}


class AscendBackend:
    """Runs vision graphs through one of the engines of this plugin.

    Args:
        name: The value of ``--backend``.
        module: The engine.
        suffix: Of the vision graphs that it loads.
        needs: The package without which the engine opens nothing.
    """

    options: Mapping[str, Choice] = _OPTIONS

    def __init__(self, name: str, module: str, suffix: str, needs: str) -> None:
        self.name = name
        self._module, self._suffix, self._needs = module, suffix, needs

    def availability(self) -> Availability:
        """Say whether the engine's package is installed; a card shows when it is used."""
        from .checks import REMEDIES

        try:
            return Availability(True, f"{self._needs} {version(self._needs)}")
        except PackageNotFoundError:
            return Availability(False, f"{self._needs} is not installed", REMEDIES[self._needs])

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return the vision graphs, which are opened when they are needed.

        Raises:
            BundleError: A graph is missing: `axcore build --toolchain ascend` makes it.
            ToolchainError: A library of the card does not load.
        """
        del options
        from axcore.runtime.vision import VisionSessions

        from .environment import apply_environment

        apply_environment("run")  # before anything of CANN is loaded
        return VisionSessions(deployment, import_module(self._module), self._suffix)

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Load the language model.

        Raises:
            CheckpointError: The checkpoint that the bundle was made from is gone.
            UsageError: PyTorch finds no card.
        """
        from axcore.runtime.torch_model import TorchLanguage, place_of, with_weights

        from .environment import apply_environment

        apply_environment("run")
        place = place_of(options["decoder-device"], options["dtype"])
        return TorchLanguage(deployment, with_weights(deployment), place)
