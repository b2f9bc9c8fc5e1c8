"""Backends for Ascend cards: vision graphs behind an engine, the language model in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from axcore import Availability, Choice, UsageError

from .environment import PROFILES, apply_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from axcore.backend import Deployment, LanguageModel, Place, Session, VisionModel

_DEVICE, _ENVIRONMENT = "device-id", "environment"
OPTIONS: Mapping[str, Choice] = {
    "decoder-device": Choice(
        ("npu", "cpu"), "where the language model runs: on the card, or on the host beside it"
    ),
    "dtype": Choice(
        ("float16", "float32", "bfloat16"),
        "precision of the language model; float16 is what every card has",
    ),
    _DEVICE: Choice((), "number of the card among the visible ones; 0 where none is given"),
    _ENVIRONMENT: Choice(
        PROFILES, "variables set before CANN is loaded; performance also lets it be measured"
    ),
}

_LIMIT = "npu-mem-limit"
PROVIDER_OPTIONS: Mapping[str, Choice] = {
    _LIMIT: Choice((), "bytes that the vision graphs may take on the card"),
    "precision-mode": Choice((), "precision of the vision graphs, as CANN names it: force_fp16, …"),
    "precision-mode-v2": Choice((), "the same for a later onnxruntime-cann: fp16, origin, …"),
}
"""Further options of the backend over ONNX Runtime, whose provider has them in underscores."""


@dataclass(frozen=True)
class _Engine:
    """An engine whose sessions all have the same provider options."""

    InferenceSession: Callable[[str], Session]


class AscendBackend:
    """Runs vision graphs through one of the engines of this plugin.

    Args:
        name: The value of ``--backend``.
        module: The engine.
        suffix: Of the vision graphs that it loads.
        needs: The package without which the engine opens nothing.
        options: What can be chosen.
    """

    def __init__(
        self, name: str, module: str, suffix: str, needs: str, options: Mapping[str, Choice]
    ) -> None:
        self.name, self.options = name, options
        self._module, self._suffix, self._needs = module, suffix, needs

    def availability(self) -> Availability:
        """Say whether the engine's package is installed; a card shows when it is used."""
        from .checks import REMEDIES

        try:
            return Availability(True, f"{self._needs} {version(self._needs)}")
        except PackageNotFoundError:
            return Availability(False, f"{self._needs} is not installed", REMEDIES[self._needs])

    def reads(self, name: str) -> bool:
        """Say yes of vision graphs of its suffix, and of their weights."""
        return name.removesuffix(".data").endswith(self._suffix)

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return the vision graphs, which are opened when they are needed.

        Raises:
            BundleError: A graph is missing: `axcore build --toolchain ascend` makes it.
            ToolchainError: A library of the card does not load.
            UsageError: An option's value is no number where one is needed.
        """
        from axcore.backend import VisionSessions

        provided = _provider_options(options)
        apply_environment(options[_ENVIRONMENT], provided["device_id"])  # before CANN is loaded
        module = import_module(self._module)
        session = partial(module.InferenceSession, provider_options=[provided])
        return VisionSessions(deployment, _Engine(session), self._suffix)

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Load the language model.

        Raises:
            CheckpointError: The checkpoint that the bundle was made from is gone.
            UsageError: PyTorch finds no card.
        """
        from axcore.backend import TorchLanguage, place_of, with_weights

        device = _provider_options(options)["device_id"]
        apply_environment(options[_ENVIRONMENT], device)
        place = place_of(options["decoder-device"], options["dtype"])
        return TorchLanguage(deployment, with_weights(deployment), numbered(place, device))


def numbered(place: Place, number: int) -> Place:
    """Return the card of that number, where `place` is a card at all."""
    if place.device.type == "cpu":
        return place
    import torch

    return place._replace(device=torch.device(place.device.type, number))


def _provider_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return what sessions take as their ``provider_options``."""
    given = {name: options[name] for name in PROVIDER_OPTIONS if name in options}
    provided: dict[str, Any] = {name.replace("-", "_"): value for name, value in given.items()}
    if _LIMIT in given:
        provided["npu_mem_limit"] = _number(_LIMIT, given[_LIMIT])
    return {"device_id": _number(_DEVICE, options.get(_DEVICE, "0")), **provided}


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--{name} {text} is no number", hint="give a whole number, 0 or more")
    return int(text)
