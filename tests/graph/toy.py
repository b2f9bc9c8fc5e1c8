"""A made-up vision tower: two kinds of blocks, a prologue, an epilogue, and a second state tensor.

`reference` computes the same from the checkpoint's tensors in plain arithmetic, knowing neither
stages nor `Weight`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from axcore import Component, Port, Stage, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIDE_PX, PATCH_PX, WIDTH, HEADS, INNER, OUT = 16, 4, 24, 3, 40, 20
ROWS = (SIDE_PX // PATCH_PX) ** 2
VALUES = 3 * PATCH_PX**2


def tensors(depth: int, seed: int = 0) -> dict[str, Tensor]:
    """Return a checkpoint of `depth` pairs of blocks, large enough in value to show mistakes."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    found = {
        "tower.patch.weight": made(WIDTH, 3, PATCH_PX, PATCH_PX),
        "tower.patch.bias": made(WIDTH),
        "tower.head.weight": made(2 * OUT, 2 * WIDTH),  # a second half that this size leaves out
        "model.embed_tokens.weight": made(32, OUT),
    }
    for index in range(depth):
        mix, wide = f"tower.mix.{index}.", f"tower.wide.{index}."
        found |= {f"{mix}{part}.weight": made(WIDTH, WIDTH) for part in ("q", "k", "v", "o")}
        found |= {f"{mix}norm.weight": 1 + made(WIDTH), f"{mix}norm.bias": made(WIDTH)}
        found |= {f"{wide}up.weight": made(INNER, WIDTH), f"{wide}up.bias": made(INNER)}
        found[f"{wide}down"] = made(INNER, WIDTH)  # stored as used in ``x @ down``
    return found


def reference(pixels: Tensor, t: Mapping[str, Tensor], depth: int) -> Tensor:
    """Return the tokens ``[ROWS, OUT]`` of images ``[1, 3, SIDE_PX, SIDE_PX]``."""
    conv = F.conv2d(pixels, t["tower.patch.weight"], t["tower.patch.bias"], PATCH_PX)
    first = conv[0].flatten(1).T
    x = first + positions()
    for index in range(depth):
        mix, wide = f"tower.mix.{index}.", f"tower.wide.{index}."
        normed = F.layer_norm(x, (WIDTH,), t[mix + "norm.weight"], t[mix + "norm.bias"])
        q, k, v = (
            (normed @ t[f"{mix}{part}.weight"].T).unflatten(1, (HEADS, -1)).transpose(0, 1)
            for part in ("q", "k", "v")
        )
        seen = torch.softmax(q @ k.transpose(1, 2) * (WIDTH // HEADS) ** -0.5, -1) @ v
        x = x + seen.transpose(0, 1).flatten(1) @ t[mix + "o.weight"].T
        x = x + F.silu(x @ t[wide + "up.weight"].T + t[wide + "up.bias"]) @ t[wide + "down"]
    return torch.cat([x, first], 1) @ t["tower.head.weight"][:OUT].T


def positions() -> Tensor:
    """Return the constant added to the patches, ``[ROWS, WIDTH]``."""
    return torch.sin(torch.arange(ROWS)[:, None] / 3 + torch.arange(WIDTH))


class Prologue(nn.Module):
    """Images to the state: rows to be transformed, and the untouched rows beside them."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(VALUES, WIDTH, device="meta")
        self.register_buffer("positions", positions())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cells = pixels.reshape(3, SIDE_PX // PATCH_PX, PATCH_PX, SIDE_PX // PATCH_PX, PATCH_PX)
        first = self.proj(cells.permute(1, 3, 0, 2, 4).reshape(ROWS, VALUES))
        return first + self.positions, first


class Mix(nn.Module):
    """Fused self-attention over packed projections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, device="meta")
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False, device="meta")
        self.o = nn.Linear(WIDTH, WIDTH, bias=False, device="meta")

    def forward(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.qkv(self.norm(x)).split(WIDTH, dim=1)
        q, k, v = (part.reshape(1, ROWS, HEADS, -1).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + self.o(seen.transpose(1, 2).reshape(ROWS, WIDTH)), first


class Wide(nn.Module):
    """Two projections with SiLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER, device="meta")
        self.down = nn.Linear(INNER, WIDTH, bias=False, device="meta")

    def forward(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.down(F.silu(self.up(x))), first


class Epilogue(nn.Module):
    """Both halves of the state to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2 * WIDTH, OUT, bias=False, device="meta")

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        tokens: Tensor = self.head(torch.cat([x, first], 1))
        return tokens


def stages(depth: int) -> tuple[Stage, ...]:
    """Return the chain; its weights need every step that `Weight` knows."""
    patch = Weight("tower.patch.weight").reshape(WIDTH, -1)
    chain = [Stage("patch", Prologue(), {"proj.weight": patch, "proj.bias": "tower.patch.bias"})]
    for index in range(depth):
        mix, wide = f"tower.mix.{index}.", f"tower.wide.{index}."
        qkv = Weight.concat([Weight(f"{mix}{part}.weight") for part in "qkv"], axis=0)
        own = {name: mix + name for name in ("norm.weight", "norm.bias", "o.weight")}
        chain.append(Stage(f"mix.{index}", Mix(), {**own, "qkv.weight": qkv}, "mix"))
        own = {name: wide + name for name in ("up.weight", "up.bias")}
        down = Weight(wide + "down").transpose(1, 0)
        chain.append(Stage(f"wide.{index}", Wide(), {**own, "down.weight": down}, "wide"))
    half = Weight("tower.head.weight").slice(0, 0, OUT)
    return *chain, Stage("head", Epilogue(), {"head.weight": half})


def component(depth: int) -> Component:
    """Return the tower with `depth` pairs of blocks."""
    return Component(
        "vision",
        "Toy_vision",
        stages(depth),
        inputs=(Port("pixels", (1, 3, SIDE_PX, SIDE_PX)),),
        outputs=(Port("tokens", (ROWS, OUT)),),
    )


def write(folder: Path, content: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["Toy"], "hidden_size": 20}')
    save_file(dict(content), folder / "model.safetensors")
    return folder


def pixels(seed: int = 0) -> Tensor:
    """Return random input for the component."""
    return torch.randn(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(seed))
