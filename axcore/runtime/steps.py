"""Decoding steps whose arrays are bound to the sessions once, not in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..layer_files import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .caches import Caches
    from .engine import Session
    from .layers import Layer, LengthGroup

Array = np.ndarray[Any, Any]


class BoundStep:
    """A decoding step of one prompt in one group; caches, masks and buffers stay in place.

    Only for layers that `can_be_bound`.

    Args:
        layers: The layer models.
        head: Takes the last layer's output.
        caches: Of one prompt.
        group: Decodes a single token.
        masks: Of each window, changed in place between steps.

    Attributes:
        index: Of the group.
        caches: The argument.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        head: Session,
        caches: Caches,
        group: LengthGroup,
        masks: Mapping[int | None, Array],
    ) -> None:
        self.index, self.caches = group.index, caches
        self._indices, self._first = (
            np.zeros(spec.shape, spec.dtype)
            for spec in (group.inputs["indices"], group.inputs["input"])
        )
        state = self._first
        self._runs: list[tuple[Callable[[], None], dict[str, Array]]] = []
        for number, layer in enumerate(layers):
            made = layer.groups[group.index].outputs
            outputs = {name: np.empty(spec.shape, spec.dtype) for name, spec in made.items()}
            arrays = {
                **caches.inputs(number, group.index, group.history),
                "indices": self._indices,
                "input": state,
                "mask": masks[layer.spec.window],
                **outputs,
            }
            self._runs.append((_bind(layer.session)(group.index, arrays), outputs))
            state = outputs[OUTPUT]
        (node,) = head.get_outputs()
        self._logits = np.empty(node.shape, node.dtype)
        self._head = _bind(head)(0, {"input": state, node.name: self._logits})

    def run(self, row: Array, position: int) -> Array:
        """Append a row, ``[width]``, to the caches; return float32 logits, ``[1, vocabulary]``."""
        self._first[:], self._indices[:] = row, position
        for number, (run, outputs) in enumerate(self._runs):
            run()
            self.caches.keep(number, outputs, 1)
        self.caches.advance(1)
        self._head()
        logits: Array = self._logits[:, 0].astype(np.float32)
        return logits


def can_be_bound(layers: Sequence[Layer], head: Session) -> bool:
    """Whether the engine binds arrays, and every layer keeps its own growing caches alone.

    States that each run replaces, caches of other layers and columns of tables change their place.
    """
    plain = all(
        cache.grows and cache.shared is None for layer in layers for cache in layer.spec.caches
    )
    sessions = (head, *(layer.session for layer in layers))
    bound = all(_bind(session) is not None for session in sessions)
    return plain and bound and not any(layer.spec.inputs for layer in layers)


def _bind(session: Session) -> Any:
    return getattr(session, "bind", None)
