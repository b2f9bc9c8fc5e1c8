"""Language models quantised by GPTQ: the tensors that replace a projection's weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..model_config import config_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..component import Shape
    from .reader import Checkpoint

PACKED = (".qweight", ".qzeros", ".g_idx")  # int32; all other tensors are float
_WORD_BITS = 32
_HINT = "use the original checkpoint, or a language model quantised by GPTQ"


@dataclass(frozen=True)
class Scheme:
    """How projections are quantised: bits per weight, and number of inputs that share a scale."""

    bits: int
    group_size: int

    def tensors(self, stem: str, weight: Shape) -> dict[str, Shape]:
        """Return key and shape of the tensors that replace ``<stem>.weight`` ``[out, in]``."""
        rows, columns = weight
        groups = math.ceil(columns / self.group_size) if self.group_size > 0 else 1
        return {
            f"{stem}.qweight": (self._words(columns), rows),
            f"{stem}.qzeros": (groups, self._words(rows)),
            f"{stem}.scales": (groups, rows),
            f"{stem}.g_idx": (columns,),
        }

    def _words(self, count: int) -> int:
        return math.ceil(count * self.bits / _WORD_BITS)


def as_stored(
    checkpoint: Checkpoint, expected: Mapping[str, Shape], text: Sequence[str]
) -> Mapping[str, Shape]:
    """Return `expected` with the packed tensors of quantised projections.

    Vision side, embedding and norms are always float; so are projections that the checkpoint
    stores as such.

    Args:
        checkpoint: Its config says how it is quantised, its keys which projections are.
        expected: Canonical key to shape, of the float model.
        text: Prefixes of the language model's keys.

    Raises:
        CheckpointError: It is quantised by another method, or the config does not name one.
    """
    stems = [
        stem
        for key, shape in expected.items()
        if key.startswith(tuple(text)) and len(shape) == 2
        for stem in [key.removesuffix(".weight")]
        if f"{stem}.qweight" in checkpoint.tensors
    ]
    if not stems:
        return expected
    scheme = _scheme(checkpoint)
    stored = dict(expected)
    for stem in stems:
        stored |= scheme.tensors(stem, stored.pop(f"{stem}.weight"))
    return stored


def float_keys(checkpoint: Checkpoint) -> list[str]:
    """Return the keys of the float model; a quantised projection is one tensor."""
    packed = (".qzeros", ".g_idx", ".scales")
    return [
        key.removesuffix(".qweight") + ".weight" if key.endswith(".qweight") else key
        for key in checkpoint.tensors
        if not key.endswith(packed)
    ]


def float_shape(checkpoint: Checkpoint, key: str) -> Shape:
    """Return the shape of what `float_tensor` returns; raises as it does."""
    stem = key.removesuffix(".weight")
    if key in checkpoint.tensors or f"{stem}.qweight" not in checkpoint.tensors:
        return checkpoint.info(key).shape
    columns, rows = (checkpoint.info(f"{stem}.{name}").shape[-1] for name in ("g_idx", "scales"))
    return rows, columns


def float_tensor(checkpoint: Checkpoint, key: str) -> Tensor:
    """Read a tensor; a quantised projection is dequantised to float16 ``[out, in]``.

    Args:
        key: Canonical key of the float model, ``<stem>.weight`` for a projection.

    Raises:
        CheckpointError: The tensor is unknown, or quantised by another method than GPTQ.

    Source: GPTQModel's ``gptq`` format; a stored zero point is one less than the real one.
    """
    stem = key.removesuffix(".weight")
    if key in checkpoint.tensors or f"{stem}.qweight" not in checkpoint.tensors:
        return checkpoint.tensor(key)
    bits = _scheme(checkpoint).bits
    words, zeros, scales, group = (
        checkpoint.tensor(f"{stem}.{name}") for name in ("qweight", "qzeros", "scales", "g_idx")
    )
    steps = _unpacked(words, bits, axis=0) - (_unpacked(zeros, bits, axis=1) + 1)[group.long()]
    weight: Tensor = (steps * scales[group.long()]).T
    return weight.to(scales.dtype)


def _unpacked(words: Tensor, bits: int, axis: int) -> Tensor:
    """Unpack the fields of int32 words, the lowest bits first, along `axis`."""
    import torch

    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32)
    shape = (-1, 1) if axis == 0 else (-1,)
    fields = words.unsqueeze(axis + 1) >> shifts.reshape(shape)
    unpacked: Tensor = (fields & (2**bits - 1)).flatten(axis, axis + 1)
    return unpacked


def _scheme(checkpoint: Checkpoint) -> Scheme:
    said = [part.get("quantization_config") for part in reversed(config_parts(checkpoint.config))]
    found: Mapping[str, Any] = next((part for part in said if isinstance(part, Mapping)), {})
    method = found.get("quant_method") or found.get("method")
    if method != "gptq":
        raise CheckpointError(
            f"the language model is quantised by {method or 'an unnamed method'}, not by gptq\n"
            f"  read from: {checkpoint.folder / 'config.json'}, quantization_config",
            hint=_HINT,
        )
    try:
        return Scheme(int(found["bits"]), int(found["group_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`quantization_config` lacks bits or group_size: {error!r}\n"
            f"  file: {checkpoint.folder / 'config.json'}",
            hint=_HINT,
        ) from error
