"""The resampler: a fixed number of learned queries attends to the patches once.

Source: MiniCPM-V-4 and MiniCPM-V-2, ``Resampler``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from axcore import Calibration, Component, Port, Stage, Weight, attend

from . import preprocess, siglip
from .configs import HEAD_DIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from PIL.Image import Image

    from axcore import Job, Sample

    BuildOptions = Mapping[str, Mapping[str, Any]]

EPS = 1e-6  # upstream's constant, not in config.json
THETA = 10_000.0  # likewise, the base of the position frequencies


class Resampler(nn.Module):
    """Patches to tokens: ``[1, N, vision]`` to ``[1, queries, width]``.

    Args:
        width: Hidden size of the language model.
        vision_width: Hidden size of the patches.
        queries: Number of output tokens.
        grid: Rows and columns of patches, N = rows * columns.
        placed_queries: Whether the checkpoint stores positions that are added to the queries.
    """

    positions: Tensor

    def __init__(
        self,
        width: int,
        vision_width: int,
        queries: int,
        grid: tuple[int, int],
        *,
        placed_queries: bool,
    ) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.query = _parameter(queries, width)
        self.pos_embed = _parameter(queries, width) if placed_queries else None
        self.kv_proj = nn.Linear(vision_width, width, bias=False, device="meta")
        self.ln_q = nn.LayerNorm(width, eps=EPS, device="meta")
        self.ln_kv = nn.LayerNorm(width, eps=EPS, device="meta")
        self.q_proj = nn.Linear(width, width, device="meta")
        self.k_proj = nn.Linear(width, width, device="meta")
        self.v_proj = nn.Linear(width, width, device="meta")
        self.out_proj = nn.Linear(width, width, device="meta")
        self.ln_post = nn.LayerNorm(width, eps=EPS, device="meta")
        self.proj = _parameter(width, width)
        self.register_buffer("positions", sincos(*grid, width), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Attend the patches: keys know where they are, values do not."""
        values = self.ln_kv(self.kv_proj(patches))
        queries = self.ln_q(self.query)[None]
        if self.pos_embed is not None:
            queries = queries + self.pos_embed
        keys = self.k_proj(values + self.positions)
        seen = attend(self.q_proj(queries), keys, self.v_proj(values), self.heads)
        # Stored as it is used: `proj` is not transposed.
        tokens: Tensor = self.ln_post(self.out_proj(seen)) @ self.proj
        return tokens


def sincos(rows: int, columns: int, width: int) -> Tensor:
    """Return the positions of a grid of patches, row by row.

    Returns:
        float32 ``[rows * columns, width]``: sine and cosine of the column in the first half, of
        the row in the second.
    """
    quarter = width // 4
    frequencies = 1 / THETA ** (torch.arange(quarter) / quarter)
    down, across = (torch.arange(n)[:, None] * frequencies for n in (rows, columns))
    angles = torch.stack(
        [across.expand(rows, columns, quarter), down[:, None].expand(rows, columns, quarter)], -2
    )
    return torch.cat([angles.sin(), angles.cos()], -1).reshape(rows * columns, width)


def components(
    job: Job,
    stages: Iterable[Stage],
    inputs: tuple[Port, ...],
    samples: Callable[[Sequence[Image]], Iterable[Sample]],
    hidden: int,
    *,
    placed_queries: bool,
    calibration: Calibration,
    build_options: BuildOptions | None = None,
) -> list[Component]:
    """Return a tower and the resampler that follows it.

    Args:
        job: Its profile has the image size, its config the number of tokens and their width.
        stages: Stages of the tower.
        inputs: Inputs of the tower.
        samples: See `axcore.Component.preprocess`.
        hidden: Hidden size of the tower.
        placed_queries: Whether the checkpoint stores positions of the queries.
        calibration: How the samples of both are stored.
        build_options: See `axcore.Component`; of both.
    """
    grid, queries = preprocess.grid(job), job.config["query_num"]
    patches = Port("vision_embedding", (1, prod(grid), hidden))
    tower = Component(
        "siglip",
        "siglip",
        tuple(stages),
        inputs=inputs,
        outputs=(patches,),
        preprocess=samples,
        calibration=calibration,
        build_options=build_options or {},
    )
    module = Resampler(job.text_width, hidden, queries, grid, placed_queries=placed_queries)
    behind = Component(
        "resampler",
        "resampler",
        (Stage("resampler", module, keys(module)),),
        inputs=(patches,),
        outputs=(Port("vision_embedding_out", (1, queries, job.text_width)),),
        calibration=calibration,
        build_options=build_options or {},
    )
    return [tower, behind]


def keys(module: Resampler) -> dict[str, str | Weight]:
    """Return the origin of every parameter: the checkpoint packs the three input projections."""
    names = [name for name, _ in module.named_parameters()]
    return {
        **{name: f"resampler.{name}" for name in names},
        **{name: f"resampler.attn.{name}" for name in names if name.startswith("out_proj.")},
        **siglip.unpacked("resampler.attn.in_proj_", len(module.proj)),
    }


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"))
