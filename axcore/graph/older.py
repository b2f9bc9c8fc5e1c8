"""Functions whose operator an older operator set lacks, in terms of operators it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LAYER_NORM_SINCE = 17


class Older(TorchFunctionMode):
    """While active, `torch.nn.functional.layer_norm` is written out where `opset` asks for it.

    onnx's version converter has no way back from LayerNormalization, which came with 17.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self._written_out: dict[Callable[..., Any], Callable[..., Any]] = {}
        if opset < _LAYER_NORM_SINCE:
            self._written_out[F.layer_norm] = layer_norm

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._written_out.get(func, func)(*args, **(kwargs or {}))


def layer_norm(
    input: Tensor,  # noqa: A002 torch's name, which callers may use
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise the last axes, in float32 whatever the precision of `input`.

    Args:
        input: ``[..., *normalized_shape]``.
        normalized_shape: The axes to normalise over.
        weight, bias: ``[*normalized_shape]``.
        eps: Added to the variance.

    Source: the formula in the documentation of `torch.nn.LayerNorm`.
    """
    axes = tuple(range(-len(normalized_shape), 0))
    wide = input.float()
    centred = wide - wide.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    result = (centred / torch.sqrt(variance + eps)).to(input.dtype)
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias
