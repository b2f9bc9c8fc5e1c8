"""The backend that runs a bundle with an engine: pyaxengine, or its simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..availability import Availability
from ..choices import Choice
from ..errors import AxcoreError, UsageError
from .engine import load_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .deployment import Deployment
    from .engine import Engine
    from .language import LanguageModel
    from .vision import VisionModel

MOST_THREADS = 1024  # far more than help; ONNX Runtime starts as many as it is told
_THREADS = Choice((), "how many threads compute; default: one for each core")


class EngineBackend:
    """Runs vision graphs and layer models with an engine that has the API of pyaxengine.

    Args:
        name: Name of the engine and of the backend.
        suffix: Suffix of the model files that it reads.
    """

    def __init__(self, name: str, suffix: str) -> None:
        self.name, self.suffix = name, suffix
        self.options: Mapping[str, Choice] = {"threads": _THREADS} if name == "onnx" else {}

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
        from .vision import VisionSessions

        return VisionSessions(deployment, self._engine(options, mapped=True), self.suffix)

    def check(self, deployment: Deployment) -> None:
        """Refuse missing and damaged layer models without opening them."""
        files, head = deployment.layer_files(self.suffix)
        deployment.check([*files, head])

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Open the layer models."""
        from .language import LayerModels

        return LayerModels(deployment, self._engine(options), self.suffix)

    def _engine(self, options: Mapping[str, str], *, mapped: bool = False) -> Engine:
        if "threads" not in self.options:
            return load_engine(self.name)
        given = options.get("threads")
        return load_engine(self.name, threads=_count(given) if given else None, mapped=mapped)


def _count(given: str) -> int:
    """Return a number of threads.

    Raises:
        UsageError: It is none.
    """
    if not (given.isascii() and given.isdigit() and 1 <= int(given) <= MOST_THREADS):
        raise UsageError(
            f"--threads {given} is out of range", hint=f"choose from 1 to {MOST_THREADS}"
        )
    return int(given)
