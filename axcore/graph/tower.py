"""Stages of a vision tower that exists as a module already, such as a class of transformers.

The blocks are stages of one kind. What the module computes before the first and behind the last is
found by running it with stand-ins for the blocks: some remember what they are given, others return
what they are told. A parameter belongs to a stage if its module runs there.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..component import Stage
from ..errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..component import Shape

    Features = Callable[[nn.Module, Tensor], Tensor]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters take no memory and whose buffers are real.

    >>> with parameters_on_meta():
    ...     model = FooForConditionalGeneration(config)
    """
    registered = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        registered(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = registered  # type: ignore[method-assign]


def tower_stages(
    model: nn.Module,
    features: Features,
    blocks: str,
    shape: Shape,
    *,
    count: int | None = None,
    key: Callable[[str], str] = str,
) -> tuple[Stage, ...]:
    """Return the stages ``before``, ``blocks.<n>`` and ``behind`` of a vision tower.

    Args:
        model: Parameters on the meta device, buffers real (see `parameters_on_meta`). What it has
            beside the tower does not matter.
        features: Computes the rows for the language model from the model and the component's
            input. Its other arguments are constants.
        blocks: Name of the `torch.nn.ModuleList` that holds the blocks. Each takes the state first
            and returns it, alone or first in a tuple; what else it takes must not depend on the
            input.
        shape: Of the component's input, float32.
        count: How many blocks contribute, for models that take the state before the last ones.
            None for all.
        key: Turns a parameter's name in `model` into its canonical key.

    Raises:
        ContractError: `features` does not run the blocks.
    """
    taken = _taken(model, features, blocks, shape)
    found = [*model.get_submodule(blocks).children()][:count]
    before = _Around(model, features, blocks, shape, _Remembering)
    behind = _Around(model, features, blocks, shape, _Told)
    first, last = _needed(before, torch.zeros(shape)), _needed(behind, taken.state)
    return (
        Stage("before", before.only(first), before.keys(first, key)),
        *(
            Stage(
                f"blocks.{index}",
                _Block(block, taken),
                {
                    f"block.{name}": key(f"{blocks}.{index}.{name}")
                    for name, _ in block.named_parameters()
                },
                "block",
            )
            for index, block in enumerate(found)
        ),
        Stage("behind", behind.only(last), behind.keys(last, key)),
    )


class _Reached(Exception):
    """The first block is reached: what it is given."""

    def __init__(self, state: Tensor, others: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        super().__init__()
        self.state, self.others, self.named = state, others, named


class _Remembering:
    """Forward of a block that ends the computation with what it is given."""

    def forward(self, state: Tensor, *others: Any, **named: Any) -> Tensor:
        raise _Reached(state, others, named)


class _Told:
    """Forward of a block that returns what it was told before."""

    told: Tensor

    def forward(self, state: Tensor, *others: Any, **named: Any) -> Tensor:
        del state, others, named
        return self.told


class _Around(nn.Module):
    """A model whose blocks are stand-ins: what it computes before them, or behind them."""

    def __init__(
        self, model: nn.Module, features: Features, blocks: str, shape: Shape, form: type
    ) -> None:
        super().__init__()
        self.model, self._features, self._shape = copy.deepcopy(model), features, shape
        found = self.model.get_submodule(blocks)
        assert isinstance(found, nn.ModuleList)
        self._told = form is _Told
        self._blocks = list(found)  # a list, because their parameters are no part of this
        for block in found:
            # A class of its own kind, because models recognise their blocks by class.
            block.__class__ = type(form.__name__, (form, type(block)), {})
            block._parameters.clear()
            block._modules.clear()

    def forward(self, value: Tensor) -> Tensor:
        if self._told:
            for block in self._blocks:
                block.told = value
            return self._features(self.model, torch.zeros(self._shape, dtype=value.dtype))
        return self.reach(value).state

    def reach(self, value: Tensor) -> _Reached:
        """Run until the first block.

        Raises:
            ContractError: No block is reached.
        """
        try:
            self._features(self.model, value)
        except _Reached as reached:
            return reached
        raise ContractError(
            "`features` does not run the blocks",
            hint="name the list of blocks that the vision tower runs",
        )

    def only(self, used: Iterable[str]) -> _Around:
        """Drop every parameter but those `used`, and what was told; return the module."""
        held = {name for name, _ in self.named_parameters(remove_duplicate=False)}  # tied ones too
        for name in held - set(used):
            place, _, last = name.rpartition(".")
            self.get_submodule(place)._parameters[last] = None
        for block in self._blocks:
            vars(block).pop("told", None)
        return self

    def keys(self, used: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
        """Return the canonical keys of parameters, by their names here."""
        return {name: key(name.removeprefix("model.")) for name in sorted(used)}


class _Reach(nn.Module):
    """Returns what the first block is given."""

    def __init__(self, around: _Around) -> None:
        super().__init__()
        self.around = around

    def forward(self, value: Tensor) -> _Reached:
        return self.around.reach(value)


class _Block(nn.Module):
    """A block that is given the state alone; what else it takes became constants."""

    def __init__(self, block: nn.Module, taken: _Reached) -> None:
        super().__init__()
        self.block = block
        self._others, self._named = len(taken.others), list(taken.named)
        self._plain: dict[str, Any] = {}
        for name, value in zip(self._slots, [*taken.others, *taken.named.values()], strict=True):
            self._hold(name, value)

    def forward(self, state: Tensor) -> Tensor:
        values = [self._held(name) for name in self._slots]
        named = dict(zip(self._named, values[self._others :], strict=True))
        result = self.block(state, *values[: self._others], **named)
        made: Tensor = result if isinstance(result, Tensor) else result[0]
        return made

    @property
    def _slots(self) -> list[str]:
        return [f"given_{index}" for index in range(self._others + len(self._named))]

    def _hold(self, name: str, value: Any) -> None:
        """Keep a constant; tensors become buffers, so that they follow the precision."""
        if isinstance(value, Tensor):
            self.register_buffer(name, value.detach().clone(), persistent=False)
        elif isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
            self._plain[name] = len(value)
            for index, item in enumerate(value):
                self._hold(f"{name}_{index}", item)
        else:
            self._plain[name] = value

    def _held(self, name: str) -> Any:
        if name not in self._plain:
            return getattr(self, name)
        if f"{name}_0" in self._plain or hasattr(self, f"{name}_0"):
            return tuple(self._held(f"{name}_{index}") for index in range(self._plain[name]))
        return self._plain[name]


def _taken(model: nn.Module, features: Features, blocks: str, shape: Shape) -> _Reached:
    """Return what the first block is given for an input of zeros, with weights of zeros."""
    around = _Around(model, features, blocks, shape, _Remembering)
    reach, zeros = _Reach(around), _zeros(around, "around.")
    reached: _Reached = torch.func.functional_call(reach, zeros, torch.zeros(shape))
    return reached


def _needed(around: _Around, example: Tensor) -> set[str]:
    """Return the parameters of the modules that run, and of those that these are in.

    Some may have no effect on the result, such as the head of a pooling that is not asked for;
    tracing leaves them out of the graph.
    """
    ran: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: ran.add(name))
        for name, module in around.named_modules()
    ]
    torch.func.functional_call(around, _zeros(around), example)
    for hook in hooks:
        hook.remove()
    above = {name[:at] for name in ran for at, char in enumerate(name) if char == "."}
    # A module whose parts do not run by themselves uses their parameters as its own.
    alone = tuple(f"{name}." for name in ran - above)
    return {
        name
        for name, _ in around.named_parameters()
        if name.rpartition(".")[0] in {"", *ran, *above} or name.startswith(alone)
    }


def _zeros(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return a parameter of zeros for each, which takes no memory."""
    zero = torch.zeros(())
    return {prefix + name: zero.expand(param.shape) for name, param in module.named_parameters()}
