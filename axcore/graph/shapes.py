"""Infer shapes along a chain of stages, without weights and without tracing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..component import Port
from ..errors import ContractError
from .stitch import boundary_names, check_outputs, port_spec
from .trace import Spec, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..component import Component, Stage


def chain_specs(component: Component, dtype: torch.dtype) -> list[tuple[Spec, ...]]:
    """Return shape and dtype of what each stage returns.

    Raises:
        ContractError: A stage fails on what it receives, or the last one does not return what
            the component's output ports declare.
    """
    state = tuple(port_spec(port, dtype) for port in component.inputs)
    known: dict[tuple[str, tuple[Spec, ...]], tuple[Spec, ...]] = {}
    chain = []
    for stage in component.stages:
        key = stage.kind, state
        if key not in known:
            known[key] = _infer(stage, state, dtype)
        state = known[key]
        chain.append(state)
    check_outputs(component, state, dtype)
    return chain


def part_ports(
    component: Component, cuts: Sequence[int], dtype: torch.dtype
) -> list[tuple[tuple[Port, ...], tuple[Port, ...]]]:
    """Return inputs and outputs of each part between `cuts`."""
    chain = chain_specs(component, dtype)
    bounds = [[_typed(port, dtype) for port in component.inputs]]
    for cut in cuts:
        names = boundary_names(component.stages[cut - 1], len(chain[cut - 1]))
        specs = zip(names, chain[cut - 1], strict=True)
        bounds.append([Port(name, shape, _name(kind)) for name, (shape, kind) in specs])
    bounds.append([_typed(port, dtype) for port in component.outputs])
    return [(tuple(a), tuple(b)) for a, b in pairwise(bounds)]


def _typed(port: Port, dtype: torch.dtype) -> Port:
    """Return a port with the dtype that it has in a graph of precision `dtype`."""
    return replace(port, dtype=_name(port_spec(port, dtype)[1]))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _infer(stage: Stage, state: Sequence[Spec], dtype: torch.dtype) -> tuple[Spec, ...]:
    module = typed(stage.module, dtype)
    # Fake tensors have shape and dtype but no data, so this takes neither memory nor time.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        values = tuple(torch.empty(shape, dtype=kind) for shape, kind in state)
        weights = {n: torch.empty(p.shape, dtype=p.dtype) for n, p in module.named_parameters()}
        try:
            out = torch.func.functional_call(module, weights, values)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise ContractError(
                f"stage `{stage.name}` fails on {[list(shape) for shape, _ in state]}:"
                f" {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                hint="a stage takes what the one before it returns",
            ) from error
    outputs = (out,) if isinstance(out, torch.Tensor) else tuple(out)
    return tuple((tuple(t.shape), t.dtype) for t in outputs)
