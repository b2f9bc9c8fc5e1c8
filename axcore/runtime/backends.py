"""The backend that runs a bundle with an engine: pyaxengine, or its simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..availability import Availability
from ..errors import AxcoreError
from .engine import load_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..choices import Choice
    from .deployment import Deployment
    from .language import LanguageModel
    from .vision import VisionModel


class EngineBackend:
    """Runs vision graphs and layer models with an engine that has the API of pyaxengine.

    Args:
        name: Name of the engine and of the backend.
        suffix: Suffix of the model files that it reads.
    """

    def __init__(self, name: str, suffix: str) -> None:
        self.name, self.suffix = name, suffix
        self.options: Mapping[str, Choice] = {}

    def availability(self) -> Availability:
        """Whether the engine loads on this machine."""
        try:
            engine = load_engine(self.name)
        except AxcoreError as error:
            return Availability(False, error.message, error.hint)
        return Availability(True, getattr(engine, "__name__", self.name))

    def reads(self, name: str) -> bool:
        """Whether a file is a model with this suffix, or the weights of one."""
        return name.removesuffix(".data").endswith(self.suffix)

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return the vision graphs; they are opened on first use."""
        del options
        from .vision import VisionSessions

        return VisionSessions(deployment, load_engine(self.name), self.suffix)

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Open the layer models."""
        del options
        from .language import LayerModels

        return LayerModels(deployment, load_engine(self.name), self.suffix)
