"""The vision side at run time: turn a prompt's samples into rows for the language model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import partial
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ..errors import BundleError, ContractError
from .engine import open_session, shape_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..component import Component, Sample
    from ..language_model import Prompt
    from ..toolchains.contract import GraphFile
    from .deployment import Deployment
    from .engine import Engine, Session

    Part: TypeAlias = GraphFile | Component
    Run = Callable[[Sample], dict[str, "Array"]]

Array = np.ndarray[Any, Any]
_CACHED = 64  # samples whose rows are kept, so that a conversation runs each image only once


class VisionModel(Protocol):
    """Turns a sample into rows."""

    def open(self) -> None:
        """Load the model if it is not loaded yet; `run` and `features` do so as well."""

    def run(self, sample: Sample) -> Array:
        """Return float32 ``[rows, hidden]`` for one stored sample of the first component."""

    def features(self, sample: Sample) -> dict[str, Array]:
        """Return the first output of every component for one such sample, in order, by name."""


class VisionSide:
    """Runs the images of prompts and caches their rows."""

    def __init__(self, model: VisionModel) -> None:
        self._model = model
        self._known: dict[bytes, Array] = {}

    def rows(self, prompt: Prompt) -> Array:
        """Return the rows that replace the placeholders of `prompt`: float32 ``[m, hidden]``."""
        wanted = next(iter(prompt.vision_rows.values()), ())
        made = [self._run(sample) for samples in prompt.images.values() for sample in samples]
        rows = sum(map(len, made))
        if rows < len(wanted):
            raise ContractError(
                f"the prompt has places for {len(wanted)} rows; its images give {rows}",
                hint="make `prepare_prompt` and `export_vision` agree",
            )
        # A static graph returns a fixed number of rows; those beyond the placeholders are padding.
        return np.concatenate(made)[: len(wanted)] if made else np.empty((0, 0), np.float32)

    def open(self) -> None:
        """Load the model ahead of the first image."""
        self._model.open()

    def forget(self) -> None:
        """Drop the rows of every image."""
        self._known.clear()

    def _run(self, sample: Sample) -> Array:
        identity = hashlib.sha256()
        for array in sample.values():
            identity.update(np.ascontiguousarray(array).tobytes())
        key = identity.digest()
        if key not in self._known:
            self._known[key] = self._model.run(sample)
        # Dicts keep insertion order, so the least recently used entry is the first.
        self._known[key] = self._known.pop(key)
        while len(self._known) > _CACHED:
            self._known.pop(next(iter(self._known)))
        return self._known[key]


class VisionChain(ABC):
    """A `VisionModel` of parts in a row, which are opened on first use and kept."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, Part, Run]] = []

    @abstractmethod
    def _opened(self) -> list[tuple[str, Part, Run]]:
        """Return the component's name of each part, the part, and what runs it."""

    def open(self) -> None:
        """Open all parts, once."""
        if not self._parts:
            self._parts = self._opened()

    def run(self, sample: Sample) -> Array:
        """Return the rows of the last component."""
        last = list(self.features(sample).values())[-1]
        return last.astype(np.float32).reshape(-1, last.shape[-1])

    def features(self, sample: Sample) -> dict[str, Array]:
        """Run the parts in order; each receives the outputs of the one before."""
        self.open()
        if self._parts:
            _check_sample(self._parts[0][1], sample)
        found: dict[str, Array] = {}
        features: dict[str, Array] = dict(sample)
        before: Part | None = None
        for component, part, run in self._parts:
            sources = feature_sources(before, part) if before else {n: n for n in features}
            features = run({port: features[name] for port, name in sources.items()})
            before, found[component] = part, next(iter(features.values()))
        return found


class VisionSessions(VisionChain):
    """Runs the exported graphs.

    Args:
        deployment: The bundle that contains them.
        engine: Runs them.
        suffix: Suffix of the model files.
        instead: Stem of a graph to a file that replaces it.
    """

    def __init__(
        self,
        deployment: Deployment,
        engine: Engine,
        suffix: str,
        instead: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._deployment, self._engine, self._suffix = deployment, engine, suffix
        self._instead = instead

    def _opened(self) -> list[tuple[str, Part, Run]]:
        graphs = self._deployment.graphs
        opened: list[tuple[str, Part, Run]] = []
        with self._deployment.progress.task("load vision", len(graphs), "files") as task:
            for graph in graphs:
                run = partial(self._outputs, graph, self._session(graph))
                opened.append((graph.component, graph, run))
                task.advance()
        return opened

    def _outputs(self, graph: GraphFile, session: Session, feed: Sample) -> dict[str, Array]:
        names = [port.name for port in session.get_outputs()]
        outputs = session.run(None, _fitted(feed, graph, session))
        return dict(zip(names, outputs, strict=True))

    def _session(self, graph: GraphFile) -> Session:
        other = self._instead.get(graph.stem)
        path = other or self._deployment.vision_file(graph, self._suffix)
        session = open_session(self._engine, path)
        _check(graph, session, path)
        return session


def _check_sample(part: Part, sample: Sample) -> None:
    """Refuse a sample that does not have what the first part takes.

    Raises:
        ContractError: Says what it has and what is taken.
    """
    image = part.calibration.format == "Image"
    for port in part.inputs:
        array, expected = sample.get(port.name), [*port.shape]
        if image:
            expected = [*port.shape[2:], 3]
        if not isinstance(array, np.ndarray) or array.size != prod(expected):
            found = (
                f"{array.dtype} {[*array.shape]}" if isinstance(array, np.ndarray) else "nothing"
            )
            raise ContractError(
                f"a prompt's sample has {found} for input `{port.name}` of `{part.stem}`\n"
                f"  expected: {'uint8' if image else port.dtype} {expected}",
                hint="`prepare_prompt` gives samples in the form that `make_calib` yields",
            )


def _check(graph: GraphFile, session: Session, path: Path) -> None:
    """Compare a session with the manifest by sizes: a compiler may have permuted the axes."""
    found = shape_groups(session)[0]
    for does, ports, specs in (
        ("takes", graph.inputs, found.inputs),
        ("returns", graph.outputs, found.outputs),
    ):
        wanted = {port.name: prod(port.shape) for port in ports}
        sizes = {name: prod(spec.shape) for name, spec in specs.items()}
        if sizes != wanted:
            raise BundleError(
                f"{path} {does} {_listed(sizes)}; the bundle says {_listed(wanted)}",
                hint="the file is of another model or size: run the same `axcore convert`, or"
                " `axcore build`, again",
            )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} of {size} values" for name, size in sizes.items())


def _fitted(feed: Sample, graph: GraphFile, session: Session) -> dict[str, Array]:
    """Convert arrays to what the session expects; a compiled model may take uint8 images."""
    fitted = {}
    for port in session.get_inputs():
        array, shape = feed[port.name], tuple(port.shape)
        if not (port.dtype == np.uint8 and array.dtype == np.uint8):
            array = graph.calibration.graph_input(array)
        if array.dtype == np.float32:
            array = array.astype(port.dtype)
        fitted[port.name] = np.ascontiguousarray(array).reshape(shape)
    return fitted


def feature_sources(graph: Part, behind: Part) -> dict[str, str]:
    """Map each input of `behind` to an output of `graph`, by name, else by position.

    Raises:
        ContractError: An input has no matching output.
    """
    made = {port.name: port for port in graph.outputs}
    named = any(port.name in made for port in behind.inputs)
    sources = {}
    for position, port in enumerate(behind.inputs):
        in_place = graph.outputs[position] if position < len(graph.outputs) else None
        source = made.get(port.name) if named else in_place
        if source is None or source.shape != port.shape:
            returned = ", ".join(f"{out.name} {list(out.shape)}" for out in graph.outputs)
            raise ContractError(
                f"`{behind.stem}` takes {port.name} {list(port.shape)};"
                f" `{graph.stem}` returns {returned}",
                hint="give it a `preprocess`, or make its inputs match those outputs",
            )
        sources[port.name] = source.name
    return sources
