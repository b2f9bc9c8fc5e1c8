"""The towers: rows through a few affine maps; side rows leave the blocks between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from axcore import Stage

from . import HEARD, MEL, ROWS, SIDE, TEXT, WIDTH


class Patches(nn.Linear):
    """Pixels ``[1, 3, SIDE, SIDE]`` to rows ``[1, ROWS, WIDTH]``."""

    def forward(self, pixels: Tensor) -> Tensor:
        cells = pixels.reshape(3, SIDE // 16, 16, SIDE // 16, 16).permute(1, 3, 0, 2, 4)
        return super().forward(cells.reshape(1, ROWS, -1))


class Block(nn.Linear):
    """Changes the rows; side rows pass untouched."""

    def forward(self, x: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        return x + torch.tanh(super().forward(x)), *sides


class Side(nn.Linear):
    """Leaves the rows untouched; further side rows are made of them."""

    def forward(self, x: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        return x, *sides, super().forward(torch.tanh(x))


class Out(nn.Linear):
    """Rows to the language model's width; side rows pass untouched."""

    def forward(self, x: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        return super().forward(torch.tanh(x)), *sides


class Heard(nn.Linear):
    """Two states of one."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = super().forward(x)
        return made, made * made


class Joined(nn.Linear):
    """One state of two."""

    def forward(self, heard: Tensor, loud: Tensor) -> Tensor:
        return super().forward(heard + loud)


def eye() -> tuple[Stage, ...]:
    with torch.device("meta"):
        sides = [Side(WIDTH, TEXT) for _ in range(2)]
        return (
            Stage("patch", Patches(3 * 16 * 16, WIDTH), "eye.patch."),
            Stage("blocks.0", Block(WIDTH, WIDTH), "eye.blocks.0.", kind="block"),
            Stage("side.0", sides[0], "eye.side.0.", kind="side"),
            Stage("blocks.1", Block(WIDTH, WIDTH), "eye.blocks.1.", kind="block"),
            Stage("side.1", sides[1], "eye.side.1.", kind="side"),
            Stage("blocks.2", Block(WIDTH, WIDTH), "eye.blocks.2.", kind="block"),
            Stage("out", Out(WIDTH, TEXT), "eye.out."),
        )


def second() -> tuple[Stage, ...]:
    with torch.device("meta"):
        return (
            Stage("patch", Patches(3 * 16 * 16, WIDTH), "second.patch."),
            Stage("out", nn.Linear(WIDTH, TEXT), "second.out."),
        )


def ear() -> tuple[Stage, ...]:
    assert MEL[1] == HEARD
    with torch.device("meta"):
        return (
            Stage("in", nn.Linear(MEL[2], WIDTH), "ear.in."),
            Stage("out", Heard(WIDTH, WIDTH), "ear.out."),
        )


def bridge() -> tuple[Stage, ...]:
    with torch.device("meta"):
        return (
            Stage("in", Joined(WIDTH, WIDTH), "bridge.in."),
            Stage("out", nn.Linear(WIDTH, TEXT), "bridge.out."),
        )
