"""The interface that ``axengine`` had before pyaxengine, which published scripts still use.

It is reached by ``InferenceSession.load_from_model``. A group is chosen beforehand, arrays are read
as raw bytes whatever their shape and dtype, and outputs are found by number or by name.

Source: public scripts written for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .engine import Node, Session

    Array = np.ndarray[Any, Any]


class Outputs(list["Array"]):
    """The outputs in the model's order; also found by name."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__(arrays.values())
        self._names = list(arrays)

    def __getitem__(self, key: Any) -> Any:
        """Return the output of that number or name."""
        return super().__getitem__(self._names.index(key) if isinstance(key, str) else key)


class LegacySession:
    """A model with the older interface.

    Args:
        session: The model.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._group = session, 0

    def set_runtime_context(self, group_id: int = 0) -> None:
        """Choose the shape group of the runs that follow; `ShapeGroupError` if there is none."""
        self._session.get_inputs(group_id)
        self._group = group_id

    def get_output_shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of every output in the chosen group."""
        return [tuple(node.shape) for node in self._session.get_outputs(self._group)]

    def run(self, input_feed: Mapping[str, Array]) -> Outputs:
        """Run the model once.

        Args:
            input_feed: Input name to array; its bytes, in C order, are what the model reads. An
                array of the input's type may be shorter, as scripts leave out the padding of a
                chunk: zeros stand for the rest, where a board reads what the last run left.

        Raises:
            ValueError: An input is missing, has more bytes than the model reads, or fewer of
                another type.
            RuntimeError: ONNX Runtime failed.
        """
        nodes = self._session.get_inputs(self._group)
        feed = {node.name: _as_read(node, input_feed) for node in nodes}
        made = self._session.run(None, feed, shape_group=self._group)
        names = [node.name for node in self._session.get_outputs(self._group)]
        return Outputs(dict(zip(names, made, strict=True)))


def _as_read(node: Node, feed: Mapping[str, Array]) -> Array:
    if node.name not in feed:
        raise ValueError(f"input `{node.name}` is missing, got {list(feed)}")
    array = np.ascontiguousarray(feed[node.name])
    wanted = int(np.prod(node.shape)) * node.dtype.itemsize
    if array.dtype == node.dtype and array.nbytes < wanted:
        array = np.pad(array.reshape(-1), (0, int(np.prod(node.shape)) - array.size))
    if array.nbytes != wanted:
        raise ValueError(
            f"input `{node.name}` takes {node.dtype} {list(node.shape)}, {wanted} bytes; got"
            f" {array.dtype} {list(array.shape)}, {array.nbytes} bytes"
        )
    return array.reshape(-1).view(np.uint8).view(node.dtype).reshape(node.shape)
