"""What reading a bundle needs of the installed families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..bundle import ModelRecord
    from ..model_card import Entry


class Families(Protocol):
    """The installed families; `axcore.Registry` is what there is."""

    def of_bundle(self, record: ModelRecord) -> Entry:
        """Return the model of a bundle, by the plugin that made it; raises PluginNotFound."""

    def call(self, family: str, hook: str, **arguments: Any) -> Any:
        """Call a hook of a family; raises ContractError under its name."""
