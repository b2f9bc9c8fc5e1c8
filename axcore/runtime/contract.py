"""What a backend is, and what running a bundle needs of the plugins."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from .families import Families

if TYPE_CHECKING:
    from ..availability import Availability
    from ..choices import Choice
    from .deployment import Deployment
    from .language import LanguageModel
    from .vision import VisionModel


class Backend(Protocol):
    """Runs a bundle: its vision side and its language model."""

    @property
    def name(self) -> str:
        """The value of ``--backend``."""

    @property
    def options(self) -> Mapping[str, Choice]:
        """Options of its own, by name."""

    def availability(self) -> Availability:
        """Say whether it can run here."""

    def reads(self, name: str) -> bool:
        """Say whether it loads that file of a bundle; answers go on only while those stay."""

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return what runs the images; it opens its files when it is first used.

        Args:
            deployment: What is run.
            options: Of those that it declares: what was given, and defaults.

        Raises:
            BundleError: Files are missing or damaged.
            ToolchainError: A library that it needs does not load.
        """

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Open what runs the language model; arguments and errors as `vision` has them.

        Raises:
            BundleError: Files are of other lengths than the manifest says, too.
        """


class Plugins(Families, Protocol):
    """The installed plugins; `axcore.Registry` is what there is."""

    @property
    def backends(self) -> Mapping[str, Backend]:
        """Every backend, by name."""

    def blame(self, family: str, hook: str) -> AbstractContextManager[None]:
        """Name the plugin and hook in every error raised inside."""
