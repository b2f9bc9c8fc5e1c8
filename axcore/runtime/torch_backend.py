"""The reference: PyTorch with the weights of the checkpoint that a bundle was made from."""

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
    """The family's vision stages and transformers' decoder; nothing built is read.

    Lengths are those of the bundle, so that it answers what the bundle can be held against.
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
        """Say whether both libraries are installed."""
        try:
            found = [f"{name} {version(name)}" for name in _NEEDED]
        except PackageNotFoundError as error:
            return Availability(
                False, f"{error.name} is not installed", "pip install 'axcore[evaluate]'"
            )
        return Availability(True, ", ".join(found))

    def reads(self, name: str) -> bool:
        """Say that it reads no file of a bundle: weights come from the checkpoint."""
        del name
        return False

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return the vision side, which is loaded when it is needed.

        Raises:
            CheckpointError: The checkpoint is gone or damaged.
            UsageError: The device is not there.
        """
        from .torch_model import TorchVision, place_of, with_weights

        place = place_of(options["device"], options["dtype"])
        return TorchVision(deployment, with_weights(deployment), place)

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Load the language model.

        Raises:
            CheckpointError: The checkpoint is gone, damaged, or of another model.
            UnsupportedModel: transformers has no such language model.
            UsageError: The device is not there.
        """
        from .torch_model import TorchLanguage, place_of, with_weights

        place = place_of(options["device"], options["dtype"])
        return TorchLanguage(deployment, with_weights(deployment), place)
