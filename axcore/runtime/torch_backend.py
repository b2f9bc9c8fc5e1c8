"""The reference backend: PyTorch with the checkpoint that a bundle was made from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ..availability import Availability
from ..choices import Choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .deployment import Deployment
    from .language import LanguageModel
    from .vision import VisionModel

_NEEDED = ("torch", "transformers")


class TorchBackend:
    """Runs the family's vision stages and the decoder of transformers; no built file is read.

    It uses the lengths of the bundle, so that its answers can be compared with the bundle's.
    """

    name = "torch"
    options: Mapping[str, Choice] = {
        "device": Choice(("cpu", "cuda", "npu"), "where it runs; npu needs torch_npu"),
        "dtype": Choice(
            ("float32", "bfloat16", "float16"),
            "precision; float32 is the reference and takes twice the memory of the others",
        ),
    }

    def availability(self) -> Availability:
        """Report whether torch and transformers are installed."""
        try:
            found = [f"{name} {version(name)}" for name in _NEEDED]
        except PackageNotFoundError as error:
            return Availability(
                False, f"{error.name} is not installed", "pip install 'axcore[evaluate]'"
            )
        return Availability(True, ", ".join(found))

    def reads(self, name: str) -> bool:
        """Always False: weights come from the checkpoint, not from the bundle."""
        del name
        return False

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return the vision model; it is loaded on first use.

        Raises:
            CheckpointError: The checkpoint is missing or damaged.
            UsageError: The device is not available.
        """
        from .torch_model import TorchVision, place_of, with_weights

        place = place_of(options["device"], options["dtype"])
        return TorchVision(deployment, with_weights(deployment), place)

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Load the language model.

        Raises:
            CheckpointError: The checkpoint is missing, damaged, or of another model.
            UnsupportedModel: transformers has no such language model.
            UsageError: The device is not available.
        """
        from .torch_model import TorchLanguage, place_of, with_weights

        place = place_of(options["device"], options["dtype"])
        return TorchLanguage(deployment, with_weights(deployment), place)
