"""What the engines share: pyaxengine's surface over graphs of static shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ProviderOptions = Sequence[Mapping[str, Any]]
"""As pyaxengine takes them: a list whose first mapping counts."""


@dataclass(frozen=True)
class NodeArg:
    """A port of a loaded graph."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Session(ABC):
    """A loaded graph: one shape group, static shapes, and no conversion of what it is fed."""

    def __init__(self, inputs: Sequence[NodeArg], outputs: Sequence[NodeArg]) -> None:
        self._inputs = list(inputs)
        self._outputs = list(outputs)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        """Return the inputs; raises ValueError for another group than 0."""
        _check_group(shape_group)
        return list(self._inputs)

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        """Return the outputs; raises ValueError for another group than 0."""
        _check_group(shape_group)
        return list(self._outputs)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[Array]:
        """Run the graph.

        Args:
            output_names: Which outputs are returned, in this order; None for all.
            input_feed: Arrays by input name, each of exactly the input's shape and dtype; others
                are ignored.
            run_options: Not used.
            shape_group: 0.

        Raises:
            ValueError: A name is unknown, an input is missing or of another shape or dtype.
        """
        _check_group(shape_group)
        known = [port.name for port in self._outputs]
        names = known if output_names is None else list(output_names)
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"no outputs {unknown}; there are {known}")
        feeds = [_fed(port, input_feed) for port in self._inputs]
        made = dict(zip(known, self._infer(feeds), strict=True))
        return [made[name] for name in names]

    @abstractmethod
    def _infer(self, feeds: list[Array]) -> Sequence[Array]:
        """Return the outputs, in order, for the inputs, in order and contiguous."""


def first(options: ProviderOptions | None) -> dict[str, Any]:
    """Return the options that count, with device 0 where none is named."""
    return {"device_id": 0, **(options[0] if options else {})}


def _check_group(shape_group: int) -> None:
    if shape_group != 0:
        raise ValueError(f"no shape group {shape_group}: the graph has one")


def _fed(port: NodeArg, feed: Mapping[str, Array]) -> Array:
    if port.name not in feed:
        raise ValueError(f"input `{port.name}` is missing; given: {sorted(feed)}")
    array = feed[port.name]
    if array.shape != port.shape or array.dtype != port.dtype:
        raise ValueError(
            f"input `{port.name}` is {port.dtype} {list(port.shape)}, "
            f"not {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array)
