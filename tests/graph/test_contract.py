"""What is refused before anything is traced, and by which name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from axcore import Calibration, Component, Port, Stage, Weight
from axcore.checkpoint import Checkpoint
from axcore.errors import CheckpointError, ContractError
from axcore.graph.contract import check_component, check_consumed
from axcore.graph.shapes import chain_specs

from . import toy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Change = Callable[[Component], Component]

TEXT = ("model.",)


def test_the_toy_is_accepted(checkpoint: Checkpoint) -> None:
    """A component that keeps the contract passes. Oracle: the toy, which exports and verifies."""
    component = toy.component(2)
    check_component(component, checkpoint)
    check_consumed([component], checkpoint, TEXT)
    assert chain_specs(component, torch.float32)[-1] == (((16, 20), torch.float32),)


# Each breaks one rule; the message must name what broke it ---------------------------------------


def restaged(index: int, **changes: object) -> Change:
    """Return a change of one stage."""

    def change(component: Component) -> Component:
        stages = list(component.stages)
        stages[index] = replace(stages[index], **changes)  # type: ignore[arg-type]
        return replace(component, stages=tuple(stages))

    return change


def shifted_constant(component: Component) -> Component:
    first, second = toy.Prologue(), toy.Prologue()
    second.positions = second.positions + 1
    keys = component.stages[0].keys
    stages = (Stage("a", first, keys, "same"), Stage("b", second, keys, "same"))
    return replace(component, stages=stages)


def real_parameter(component: Component) -> Component:
    module = toy.Epilogue()
    module.head = nn.Linear(2 * toy.WIDTH, toy.OUT, bias=False)
    return restaged(-1, module=module)(component)


def fed_by(weight: str | Weight) -> Change:
    """Return a change of what the last stage's one parameter is read from."""
    return restaged(-1, keys={"head.weight": weight})


UNDECLARED: Mapping[str, tuple[Change, str]] = {
    "no stages": (lambda c: replace(c, stages=()), "`vision` lacks stages"),
    "no inputs": (lambda c: replace(c, inputs=()), "`vision` lacks"),
    "stem leads away": (
        lambda c: replace(c, stem="../x"),
        r"`vision` has a name that cannot be a file name: '\.\./x'",
    ),
    "stage named twice": (restaged(3, name="mix.0"), "`vision` repeats the stage name mix.0"),
    "slash in a stage": (restaged(1, name="mix/0"), "has \"/\" in the name 'mix/0'"),
    "slash in a port": (
        lambda c: replace(c, outputs=(Port("out/tokens", (16, 20)),)),
        "has \"/\" in the name 'out/tokens'",
    ),
    "port named twice": (
        lambda c: replace(c, outputs=(Port("pixels", (16, 20)),)),
        "repeats the port name pixels",
    ),
    "colours in no order": (
        lambda c: replace(c, calibration=Calibration("Image")),
        "leaves the order of colours",
    ),
    "one kind, two classes": (
        restaged(2, kind="mix"),
        r"`mix\.0` and `wide\.0` are both of kind `mix` but differ in class",
    ),
    "one kind, two constants": (
        shifted_constant,
        "`a` and `b` are both of kind `same` but their constant `positions` differs",
    ),
    "parameter in memory": (
        real_parameter,
        r"parameter `head\.weight` of stage `head` is not on the meta device",
    ),
    "parameter without key": (
        restaged(-1, keys={}),
        r"stage `head` gives no key for parameter 'head\.weight'",
    ),
}
UNSERVED: Mapping[str, tuple[Change, str]] = {
    "key that is not there": (fed_by("tower.hat.weight"), r"no tensor `tower\.hat\.weight`"),
    "tensor of another shape": (
        fed_by("tower.head.weight"),
        r"`head\.head\.weight` the shape \[40, 48\]; config\.json implies \[20, 48\]",
    ),
    "impossible reshape": (
        fed_by(Weight("tower.head.weight").reshape(7, -1)),
        r"tower\.head\.weight cannot be converted to the shape of `head\.head\.weight`",
    ),
}


@pytest.mark.parametrize("name", [*UNDECLARED, *UNSERVED])
def test_a_broken_component_is_refused_by_name(checkpoint: Checkpoint, name: str) -> None:
    """One broken rule, one error that names the culprit. Oracle: what was broken."""
    change, message = {**UNDECLARED, **UNSERVED}[name]
    with pytest.raises(ContractError if name in UNDECLARED else CheckpointError, match=message):
        check_component(change(toy.component(2)), checkpoint)


def test_unused_tensors_are_named(tmp_path: Path) -> None:
    """A tensor outside the language model that no stage reads. Oracle: the one added."""
    content = {**toy.tensors(1), "tower.forgotten": torch.zeros(2)}
    with Checkpoint.open(toy.write(tmp_path, content)) as checkpoint:
        with pytest.raises(CheckpointError, match=r"1 tensors .* not used: tower\.forgotten$"):
            check_consumed([toy.component(1)], checkpoint, TEXT)
        check_consumed([toy.component(1)], checkpoint, (*TEXT, "tower.forgotten"))


# Shapes along the chain --------------------------------------------------------------------------


class Picky(nn.Module):
    """Takes one tensor of one width."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(7, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: replace(c, outputs=(Port("tokens", (16, 21)),)),
            r"promises float32 \[16, 21\]\n  its stages return float32 \[16, 20\]",
        ),
        (
            lambda c: replace(c, outputs=(Port("tokens", (16, 20), "int64"),)),
            r"promises int64 \[16, 20\]\n  its stages return float32",
        ),
        (
            lambda c: replace(c, inputs=(Port("pixels", (1, 3, 15, 16)),)),
            r"stage `patch` fails on \[\[1, 3, 15, 16\]\]",
        ),
        (restaged(1, module=Picky(), kind="odd"), r"stage `mix\.0` fails on"),
    ],
    ids=["other width", "other type", "other input", "stage in the middle"],
)
def test_ports_and_stages_agree(change: Change, message: str) -> None:
    """Found without tracing, and named. Oracle: what was changed."""
    with pytest.raises(ContractError, match=message) as caught:
        chain_specs(change(toy.component(2)), torch.float32)
    assert caught.value.hint
