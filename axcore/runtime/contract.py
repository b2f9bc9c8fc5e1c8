"""The protocols that backends implement, and that the registry of plugins does."""

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
        """The backend's own options, by name."""

    def availability(self) -> Availability:
        """Report whether the backend can run on this machine."""

    def reads(self, name: str) -> bool:
        """Whether the backend loads the file `name` of a bundle.

        An interrupted evaluation is resumed only if none of these files has changed.
        """

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return the vision model; it opens its files on first use.

        Args:
            deployment: The bundle to run. Loading is reported to its `progress`.
            options: A value for every declared option: as given, or the default.

        Raises:
            BundleError: Files are missing or damaged.
            ToolchainError: A required library does not load.
        """

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Open the language model; arguments and errors are those of `vision`.

        Raises:
            BundleError: Also if the files were built for other lengths than the manifest says.
        """


class Plugins(Families, Protocol):
    """The installed plugins; `axcore.Registry` is what there is."""

    @property
    def backends(self) -> Mapping[str, Backend]:
        """Every backend, by name."""

    def blame(self, family: str, hook: str) -> AbstractContextManager[None]:
        """Name the plugin and hook in every error raised inside."""
