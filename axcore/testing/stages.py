"""Run a chain of stages as PyTorch computes it, to be held against the model's own class."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from ..component import Stage


def run_stages(
    stages: Iterable[Stage], tensor: Callable[[str], Tensor], *state: Tensor
) -> tuple[Tensor, ...]:
    """Return the outputs of the last stage, in the precision of the inputs.

    Args:
        stages: In the order data flows, patched or not.
        tensor: Returns a tensor of the checkpoint by its key, e.g. `Checkpoint.tensor`.
        state: Inputs of the first stage.
    """
    import torch

    from ..graph.trace import typed

    dtype = next((x.dtype for x in state if x.is_floating_point()), torch.float32)
    with torch.no_grad():
        for stage in stages:
            bound = {name: w.resolve(tensor).to(dtype) for name, w in stage.weights().items()}
            out = torch.func.functional_call(typed(stage.module, dtype), bound, state)
            state = (out,) if isinstance(out, torch.Tensor) else tuple(out)
    return state
