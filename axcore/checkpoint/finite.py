"""NaN and infinity in weights, found in the bytes as they pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from .headers import TensorInfo

_INFINITIES: Mapping[str, tuple[int, int]] = {
    "float16": (2, 0x7C00),
    "bfloat16": (2, 0x7F80),
    "float32": (4, 0x7F80_0000),
    "float64": (8, 0x7FF0_0000_0000_0000),
}
"""Bytes of a value, and infinity: all ones in the exponent, no other bit."""
_SHOWN = 3


class Finite:
    """Counts NaN and infinity in one tensor, chunk by chunk.

    Attributes:
        info: The tensor.
        nans, infinities: How many were met.
        first: Number of the first value that is either, in the order of the file; -1 for none.
    """

    def __init__(self, info: TensorInfo) -> None:
        self.info = info
        self.nans = self.infinities = 0
        self.first = -1
        self._width, self._infinity = _INFINITIES.get(info.dtype, (1, 0))
        self._seen = 0

    def add(self, chunk: memoryview) -> None:
        """Look at the tensor's next bytes, whole values of it."""
        if not self._infinity:
            return
        import numpy as np

        bits = np.frombuffer(chunk, f"<u{self._width}")
        # Of either sign, infinity is the largest pattern of bits but for NaN. Two maxima cost a
        # tenth of hashing; a mask for the exponent would need memory for its result.
        positive, negative = bits.view(f"<i{self._width}").max(), bits.max()
        if positive >= self._infinity or negative >= self._infinity + (1 << (8 * self._width - 1)):
            self._count(bits)
        self._seen += len(bits)

    def _count(self, bits: np.ndarray[Any, Any]) -> None:
        magnitudes = bits & bits.dtype.type((1 << (8 * self._width - 1)) - 1)
        if self.first < 0:
            self.first = self._seen + int((magnitudes >= self._infinity).argmax())
        self.infinities += int((magnitudes == self._infinity).sum())
        self.nans += int((magnitudes > self._infinity).sum())

    def __str__(self) -> str:
        counts = {"NaN": self.nans, "infinite": self.infinities}
        found = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return f"{found}, the first at {_index(self.first, self.info.shape)}"


def refuse_others(tensors: Sequence[Finite]) -> None:
    """Refuse tensors in which a value is NaN or infinite.

    Raises:
        CheckpointError: For the first tensor it says how many there are, and where; others are
            counted.
    """
    wrong = [found for found in tensors if found.first >= 0]
    if not wrong:
        return
    info, others = wrong[0].info, [found.info.disk_key for found in wrong[1 : 1 + _SHOWN]]
    lines = [f"`{info.disk_key}` has values that are no numbers: {wrong[0]}"]
    if others:
        more = "" if len(wrong) <= 1 + _SHOWN else ", ..."
        lines.append(f"  so have {len(wrong) - 1} more tensors: {', '.join(others)}{more}")
    raise CheckpointError(
        "\n".join([*lines, f"  file: {info.file}"]),
        hint="fetch the file again; if it was published like this, the model cannot be computed",
    )


def _index(number: int, shape: Sequence[int]) -> list[int]:
    index: list[int] = []
    for length in reversed(shape):
        number, place = divmod(number, length)
        index.insert(0, place)
    return index
