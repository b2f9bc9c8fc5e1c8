"""Write functions of torch in operators that every operator set has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LAYER_NORM_SINCE = 17


class WrittenOut(TorchFunctionMode):
    """While active, functions of torch are replaced by others, wherever they are called from."""

    def __init__(self, functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._functions = functions

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._functions.get(func, func)(*args, **(kwargs or {}))


class Older(WrittenOut):
    """While active, `torch.nn.functional.layer_norm` is written out if `opset` is below 17.

    LayerNormalization came with opset 17, and onnx's version converter cannot convert it back.
    """

    def __init__(self, opset: int) -> None:
        super().__init__({F.layer_norm: layer_norm} if opset < _LAYER_NORM_SINCE else {})


def layer_norm(
    input: Tensor,  # noqa: A002 torch's name, which callers may use
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise the last axes; computed in float32 for any dtype of `input`.

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
