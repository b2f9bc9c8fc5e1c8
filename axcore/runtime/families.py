"""What reading a bundle needs of the installed families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..model_card import Entry


class Families(Protocol):
    """The installed families; `axcore.Registry` is what there is."""

    def find(self, model: str) -> Entry:
        """Return the model of that id; raises PluginNotFound."""

    def call(self, family: str, hook: str, **arguments: Any) -> Any:
        """Call a hook of a family; raises ContractError under its name."""
