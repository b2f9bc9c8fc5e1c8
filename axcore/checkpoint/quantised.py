"""Language models quantised by GPTQ: the tensors that replace a projection's weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import CheckpointError
from ..model_config import config_parts
from ..plain import parse, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from ..component import Shape
    from .reader import Checkpoint

PACKED = (".qweight", ".qzeros", ".g_idx")  # int32; all other tensors are float
_WORD_BITS = 32
_BITS = (2, 4, 8)
_HINT = "use the original checkpoint, or a language model quantised by GPTQ"

Format = Literal["gptq", "gptq_v2"]


@dataclass(frozen=True)
class Scheme:
    """How projections are quantised, by the names of ``quantization_config``.

    Attributes:
        bits: Bits per weight: 2, 4 or 8, so that words hold whole weights.
        group_size: Number of inputs that share a scale; -1 if all do.
        checkpoint_format: Whether stored zero points are one less than the real ones ("gptq").
        pack_dtype: Of the words.
        is_marlin_format: How some versions mark words that are ordered for a certain kernel.
    """

    bits: int
    group_size: int
    checkpoint_format: Format = "gptq"
    pack_dtype: Literal["int32"] = "int32"
    is_marlin_format: Literal[False] = False

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ValueError(f"bits: {shown(self.bits)} is not one of {_BITS}")
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(f"group_size: {shown(self.group_size)} is neither positive nor -1")

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

    Source: GPTQModel's formats ``gptq`` and ``gptq_v2``. In the former, 1 was subtracted from every
    zero point, word by word, so that a zero point of 0 borrowed from its neighbour.
    """
    stem = key.removesuffix(".weight")
    if key in checkpoint.tensors or f"{stem}.qweight" not in checkpoint.tensors:
        return checkpoint.tensor(key)
    scheme = _scheme(checkpoint)
    words, zeros, scales, group = (
        checkpoint.tensor(f"{stem}.{name}") for name in ("qweight", "qzeros", "scales", "g_idx")
    )
    if scheme.checkpoint_format == "gptq":
        zeros = zeros + sum(1 << shift for shift in range(0, _WORD_BITS, scheme.bits))
    offsets = _unpacked(zeros, scheme.bits, axis=1)[group.long()]
    weight: Tensor = ((_unpacked(words, scheme.bits, axis=0) - offsets) * scales[group.long()]).T
    return weight.to(scales.dtype)


def float_sources(checkpoint: Checkpoint, keys: Iterable[str]) -> set[str]:
    """Return the float tensors that hold tensors of the float model: itself, or its scales."""
    return {
        key if key in checkpoint.tensors else f"{key.removesuffix('.weight')}.scales"
        for key in keys
    }


def check_groups(checkpoint: Checkpoint) -> None:
    """Check that every input of a quantised projection belongs to a group that has a scale.

    Raises:
        CheckpointError: One does not; the message names tensor, place and value.
    """
    for key in checkpoint.tensors:
        if not key.endswith(".g_idx"):
            continue
        groups = checkpoint.info(f"{key.removesuffix('.g_idx')}.scales").shape[0]
        values = checkpoint.array(key)
        outside = (values < 0) | (values >= groups)
        if outside.any():
            place = int(outside.argmax())
            raise CheckpointError(
                f"`{key}` puts input {place} into group {values[place]} of {groups}\n"
                f"  file: {checkpoint.info(key).file}",
                hint="fetch the file again: it is damaged, or of another checkpoint",
            )


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
        named = shown(method) if method else "an unnamed method"
        raise CheckpointError(
            f"the language model is quantised by {named}, not by gptq\n"
            f"  read from: {checkpoint.folder / 'config.json'}, quantization_config",
            hint=_HINT,
        )
    # Early versions of GPTQModel call it by the other name.
    form = found.get("checkpoint_format") or found.get("format") or "gptq"
    try:
        return parse(Scheme, {**found, "checkpoint_format": form})
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} describes a quantisation that is not read\n"
            f"  quantization_config.{error}",
            hint=f"{_HINT}: in {', '.join(map(str, _BITS))} bits, packed as"
            f" {' or '.join(get_args(Format))}",
        ) from error
