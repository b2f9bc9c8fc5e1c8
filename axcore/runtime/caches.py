"""What layer models keep from one run to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .layers import Layer

Array = np.ndarray[Any, Any]
_SNAPSHOTS = 4


class Caches:
    """The caches of every layer: rows that grow in place, and states that each run replaces.

    Rows have the layout that sessions expect, so that a history is a view and not a copy. A state
    is never changed in place, so a snapshot of all states costs no copy either.

    Args:
        layers: The layer models.
        longest: Index of the group with the longest history, which sizes the rows.
        batch: Number of prompts.

    Attributes:
        filled: Number of tokens that they hold.
        replaced: Whether some are states, which cannot be cropped.
    """

    def __init__(self, layers: Sequence[Layer], longest: int, batch: int) -> None:
        self._layers, self.batch, self.filled = layers, batch, 0
        self._rows: dict[tuple[int, str], Array] = {}
        self._start: dict[tuple[int, str], Array] = {}
        for number, layer in enumerate(layers):
            for cache in layer.spec.own:
                spec = layer.groups[longest].inputs[cache.name]
                kept = self._rows if cache.grows else self._start
                kept[number, cache.name] = np.zeros((batch, *spec.shape[1:]), spec.dtype)
        self._states: Mapping[tuple[int, str], Array] = self._start
        self._snapshots: dict[int, Mapping[tuple[int, str], Array]] = {}
        self._made: dict[tuple[int, str], Array] = {}
        self.replaced = bool(self._start)

    def inputs(self, number: int, group: int, history: int) -> dict[str, Array]:
        """Return the caches that a layer takes in a run.

        Args:
            number: Of the layer. Those whose caches it shares have run.
            group: Index of the shape group.
            history: Length of its history.
        """
        layer, found = self._layers[number], {}
        for cache in layer.spec.caches:
            name = cache.name
            if not cache.grows:
                value = self._states[number, name]
            elif shape := layer.placeholder(cache, group):
                dtype = layer.groups[group].inputs[name].dtype
                value = np.zeros((self.batch, *shape), dtype)
            elif cache.shared is None:
                value = self._rows[number, name][:, :history]
            else:
                place = cache.shared, name
                value = np.concatenate([self._rows[place][:, :history], self._made[place]], 1)
            # For a single prompt, the usual case, views are contiguous and nothing is copied.
            found[name] = np.ascontiguousarray(value)
        return found

    def keep(self, number: int, outputs: Mapping[str, Array], count: int) -> None:
        """Take what a layer returned for `count` tokens, and padding behind them.

        Nothing of it counts before `advance`: a run that was interrupted leaves no trace.
        """
        for cache in self._layers[number].spec.own:
            place, made = (number, cache.name), outputs[f"{cache.name}_out"]
            self._made[place] = made
            if cache.grows:
                self._rows[place][:, self.filled : self.filled + count] = made[:, :count]

    def advance(self, count: int) -> None:
        """Count the tokens of a run that every layer has finished."""
        self.filled += count
        self._states = {place: self._made[place] for place in self._states}
        self._made = {}

    def remember(self) -> None:
        """Take a snapshot of the states, to which `crop` can return; the oldest is dropped."""
        if self.replaced:
            self._snapshots[self.filled] = self._states
            while len(self._snapshots) > _SNAPSHOTS:
                self._snapshots.pop(min(self._snapshots))

    def crop(self, length: int) -> int:
        """Keep the first `length` tokens, or as many fewer as states are known of; return them."""
        if self.replaced:
            known = {0: self._start, **self._snapshots, self.filled: self._states}
            length = max(tokens for tokens in known if tokens <= length)
            self._states = known[length]
            self._snapshots = {n: s for n, s in self._snapshots.items() if n <= length}
        self.filled = length
        return length
