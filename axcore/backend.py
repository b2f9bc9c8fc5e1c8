"""What a plugin that brings a backend needs, beside the names of `axcore`.

A backend is a `Backend`: over a `Deployment` it opens a `VisionModel` and a `LanguageModel`.
`VisionSessions` and `LayerModels` are both over an `Engine`, a module that opens compiled files;
`TorchVision` and `TorchLanguage` are both in PyTorch, with the weights of the checkpoint.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .runtime.contract import Backend
from .runtime.deployment import Deployment
from .runtime.engine import Engine, Node, Session
from .runtime.language import LanguageModel, LayerModels
from .runtime.vision import VisionModel, VisionSessions

if TYPE_CHECKING:
    from .runtime.torch_model import Place, TorchLanguage, TorchVision, place_of, with_weights
else:
    _IN_TORCH = ("Place", "TorchLanguage", "TorchVision", "place_of", "with_weights")

    def __getattr__(name: str) -> Any:
        """Import what needs torch when it is first asked for."""
        if name not in _IN_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(".runtime.torch_model", __package__), name)


__all__ = [
    "Backend",
    "Deployment",
    "Engine",
    "LanguageModel",
    "LayerModels",
    "Node",
    "Place",
    "Session",
    "TorchLanguage",
    "TorchVision",
    "VisionModel",
    "VisionSessions",
    "place_of",
    "with_weights",
]
