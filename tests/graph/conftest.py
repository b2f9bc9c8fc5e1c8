"""The toy tower and what is made of it, shared because tracing takes most of the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from axcore import Silent
from axcore.checkpoint import Checkpoint
from axcore.graph.attention import explicit
from axcore.graph.export import export_component
from axcore.graph.stitch import Tracer

from . import toy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from axcore import Component

DEPTH = 2


@dataclass(frozen=True)
class Exported:
    """An exported tower: what it was made of, and its files."""

    component: Component
    checkpoint: Checkpoint
    tensors: dict[str, Tensor]
    tracer: Tracer
    paths: Sequence[Path]

    def again(self, folder: Path, cuts: Sequence[int] = ()) -> list[Path]:
        """Export it once more, to `folder`; nothing is traced anew."""
        return export(self.component, self.checkpoint, self.tracer, folder, cuts=cuts)


def export(
    component: Component, checkpoint: Checkpoint, tracer: Tracer, folder: Path, **changes: Any
) -> list[Path]:
    """Export in one float32 file, but for `changes`."""
    options = {"dtype": "float32", "cuts": (), "progress": Silent(), **changes}
    return export_component(component, checkpoint, tracer, folder, **options)


@pytest.fixture(scope="session")
def tensors() -> dict[str, Tensor]:
    """The toy's weights by key."""
    return toy.tensors(DEPTH)


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]
) -> Iterator[Checkpoint]:
    """The toy's weights on disk."""
    folder = toy.write(tmp_path_factory.mktemp("checkpoint"), tensors)
    with Checkpoint.open(folder) as opened:
        yield opened


@pytest.fixture(scope="session")
def tracer() -> Tracer:
    """The float32 tracer of operator set 17; what one test traces, the next one need not."""
    return Tracer(explicit, torch.float32, 17)


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, Tensor],
    checkpoint: Checkpoint,
    tracer: Tracer,
) -> Exported:
    """The toy as one file. Tests do not change it."""
    component = toy.component(DEPTH)
    paths = export(component, checkpoint, tracer, tmp_path_factory.mktemp("exported"))
    return Exported(component, checkpoint, tensors, tracer, paths)
