"""Layer models as files: what each takes and keeps, and the shape groups that all have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BundleError
from ..language_model import Cache
from ..layer_files import (
    OUTPUT,
    PLAIN_CACHES,
    SHARED_INPUTS,
    LayerSpec,
    build_command,
    wrong_sharing,
)
from .engine import open_session, shape_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..progress import Progress
    from .deployment import Deployment
    from .engine import Engine, Group, Session, Spec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """An opened layer model.

    Attributes:
        session: Runs it.
        path: Its file.
        spec: What it keeps and takes. A file that does not say so is a plain layer.
        groups: Its shape groups.
    """

    session: Session
    path: Path
    spec: LayerSpec
    groups: Sequence[Group]

    @classmethod
    def of(cls, session: Session, path: Path) -> Layer:
        """Read what a session says of its file.

        Raises:
            BundleError: It is no layer model, or its description contradicts its shapes.
        """
        groups = shape_groups(session)
        spec = getattr(session, "layer", None)
        if spec is None:
            specs = ((name, groups[0].inputs.get(name)) for name in PLAIN_CACHES)
            spec = LayerSpec(tuple(Cache(name, s.shape[-1:] if s else (1,)) for name, s in specs))
        wanted = {c.name for c in spec.caches} | {i.name for i in spec.inputs} | {*SHARED_INPUTS}
        if set(groups[0].inputs) != wanted:
            raise BundleError(
                f"{path} is not a layer model: it takes {', '.join(groups[0].inputs)}",
                hint=rebuild(path),
            )
        layer = cls(session, path, spec, groups)
        layer._check()
        return layer

    @property
    def described(self) -> bool:
        """Whether the file says what the layer is: as one of axcore's own builds it does."""
        return any(getattr(self.session, name, None) for name in ("layer", "provenance"))

    def placeholder(self, cache: Cache, group: int) -> tuple[int, ...] | None:
        """Return the shape that replaces a cache without a history; None where it has one."""
        shape = self.groups[group].inputs[cache.name].shape
        rows, columns = self.groups[group].inputs["mask"].shape[1:]
        grown = cache.grows and cache.shared is None
        return tuple(shape[1:]) if grown and rows == columns else None

    def _check(self) -> None:
        """Compare the description with every group."""
        for number, group in enumerate(self.groups):
            rows, columns = group.inputs["mask"].shape[1:]
            shapes = {
                **self.spec.cache_shapes(columns - rows, rows),
                **{port.name: (1, rows, port.width) for port in self.spec.inputs},
            }
            outputs = {*self.spec.made_shapes(rows), OUTPUT}
            given = [cache.name for cache in self.spec.caches if self.placeholder(cache, number)]
            wrong = [
                name
                for name, shape in shapes.items()
                if name not in given and group.inputs[name].shape != shape
            ]
            if wrong or set(group.outputs) != outputs:
                raise BundleError(
                    f"{self.path} contradicts itself: "
                    + (f"`{wrong[0]}` is {list(group.inputs[wrong[0]].shape)} in group {number},"
                       f" not {list(shapes[wrong[0]])}" if wrong
                       else f"it returns {', '.join(group.outputs)}"),
                    hint=rebuild(self.path),
                )  # fmt: skip


@dataclass(frozen=True)
class LengthGroup:
    """A shape group as all layers have it: its number, what all take, the length of its history."""

    index: int
    inputs: Mapping[str, Spec]
    history: int

    @classmethod
    def of(cls, index: int, group: Group) -> LengthGroup:
        """Read the history's length from the mask."""
        rows, columns = group.inputs["mask"].shape[1:]
        return cls(index, {name: group.inputs[name] for name in SHARED_INPUTS}, columns - rows)

    @property
    def count(self) -> int:
        """Number of tokens in one run."""
        return int(self.inputs["input"].shape[1])

    @property
    def is_step(self) -> bool:
        """Whether it decodes a single token."""
        return self.inputs["indices"].shape == (1, 1)


def open_layers(engine: Engine, files: Sequence[Path], progress: Progress) -> list[Session]:
    """Open the sessions of all files."""
    opened = []
    with progress.task("load language model", len(files), "files") as task:
        for path in files:
            opened.append(open_session(engine, path))
            task.advance()
    return opened


def common_groups(layers: Sequence[Layer]) -> list[LengthGroup]:
    """Return the lengths of the groups, which all layers have in the same order.

    Raises:
        BundleError: A layer has other lengths, or shares a cache that there is not.
    """
    groups = _lengths(layers[0])
    for layer in layers:
        if _lengths(layer) != groups:
            raise BundleError(
                f"{layer.path} has other inputs or shapes than {layers[0].path.name} in the same"
                " folder",
                hint=rebuild(layer.path),
            )
    for wrong in wrong_sharing([layer.spec for layer in layers]):
        raise BundleError(f"{layers[0].path.parent}: {wrong}", hint=rebuild(layers[0].path))
    return groups


def _lengths(layer: Layer) -> list[LengthGroup]:
    return [LengthGroup.of(number, group) for number, group in enumerate(layer.groups)]


def check_lengths(
    steps: Sequence[LengthGroup], chunks: Sequence[LengthGroup], deployment: Deployment, file: Path
) -> None:
    """Compare the longest groups of the layer models with the manifest.

    Raises:
        BundleError: They were built for other lengths, or another model.
    """
    llm = deployment.llm
    found = [group.count for group in chunks] + [group.history for group in (*chunks, *steps)]
    wanted = [llm.prefill_len, max(llm.last_kv_cache_len, default=0), llm.kv_cache_len]
    if found != wanted:
        raise BundleError(
            f"{file} was built for a chunk, history and cache of {_counted(found)} tokens;"
            f" the bundle says {_counted(wanted)}",
            hint=rebuild(file),
        )
    width, expected = steps[0].inputs["input"].shape[-1], deployment.embedding.shape[1]
    if width != expected:
        raise BundleError(
            f"{file} takes states of {width}; the embedding is {expected} wide",
            hint=f"the files are of different models: {rebuild(file)}",
        )


def check_head(head: Session, file: Path, state: Spec, deployment: Deployment) -> None:
    """Compare the head with the output of the layers and the rows of the embedding.

    Raises:
        BundleError: It is of another model.
    """
    inputs, outputs = shape_groups(head)[0]
    rows, sizes = deployment.embedding.shape[0], [spec.shape[-1] for spec in outputs.values()]
    if inputs != {"input": state} or len(sizes) != 1 or sizes[0] < rows:
        taken = ", ".join(f"{name} {spec.dtype} {spec.shape}" for name, spec in inputs.items())
        raise BundleError(
            f"{file} takes {taken} and returns {', '.join(map(str, sizes))} values\n"
            f"  the layers give {state.dtype} {state.shape}, the vocabulary has {rows} tokens",
            hint=rebuild(file),
        )


def _counted(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths))


def rebuild(file: Path) -> str:
    """Return the remedy for a file that does not fit."""
    return f"run `{build_command(file.parent, file.suffix)}`, which replaces it"
