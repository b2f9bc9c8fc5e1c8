"""The vision side at run time: a prompt's samples become rows for the language model."""

from __future__ import annotations

import hashlib
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import BundleError, ContractError
from .engine import open_session, shape_groups

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..component import Component, Sample
    from ..language_model import Prompt
    from ..toolchains.contract import GraphFile
    from .deployment import Deployment
    from .engine import Engine, Session

Array = np.ndarray[Any, Any]
_REMEMBERED = 64  # samples whose rows are kept, so that a conversation sees an image once


class VisionModel(Protocol):
    """Whatever can turn a sample into rows."""

    def open(self) -> None:
        """Open what it runs, if that is still to do; the other methods do so as well."""

    def run(self, sample: Sample) -> Array:
        """Return float32 ``[rows, hidden]`` for one stored sample of the first component."""

    def features(self, sample: Sample) -> dict[str, Array]:
        """Return the first output of every component for such a sample, in order, by name."""


class VisionSide:
    """Runs the images of prompts, each once.

    Args:
        model: Runs one sample.
    """

    def __init__(self, model: VisionModel) -> None:
        self._model = model
        self._known: dict[bytes, Array] = {}

    def rows(self, prompt: Prompt) -> Array:
        """Return what replaces the placeholders of `prompt`: float32 ``[m, hidden]``."""
        wanted = next(iter(prompt.vision_rows.values()), ())
        made = [self._run(sample) for samples in prompt.images.values() for sample in samples]
        rows = sum(map(len, made))
        if rows < len(wanted):
            raise ContractError(
                f"the prompt has places for {len(wanted)} rows; its images give {rows}",
                hint="make `prepare_prompt` and `export_vision` agree",
            )
        return np.concatenate(made)[: len(wanted)] if made else np.empty((0, 0), np.float32)

    def open(self) -> None:
        """Open the model, as the first image would."""
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
        # The least recently seen goes first.
        self._known[key] = self._known.pop(key)
        while len(self._known) > _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        return self._known[key]


class VisionSessions:
    """The exported graphs, opened when first needed.

    Args:
        deployment: Where they are.
        engine: What runs them.
        suffix: Of the files that it reads.
        instead: Stem of a graph to a file that takes its place.
    """

    def __init__(
        self,
        deployment: Deployment,
        engine: Engine,
        suffix: str,
        instead: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self._deployment, self._engine, self._suffix = deployment, engine, suffix
        self._instead = instead
        self._sessions: list[tuple[GraphFile, Session]] = []

    def open(self) -> None:
        """Open every graph, once."""
        if not self._sessions:
            graphs, opened = self._deployment.graphs, []
            with self._deployment.progress.task("load vision", len(graphs), "files") as task:
                for graph in graphs:
                    opened.append((graph, self._session(graph)))
                    task.advance()
            self._sessions = opened

    def run(self, sample: Sample) -> Array:
        """Return the rows of the last component."""
        last = list(self.features(sample).values())[-1]
        return last.astype(np.float32).reshape(-1, last.shape[-1])

    def features(self, sample: Sample) -> dict[str, Array]:
        """Run every graph in turn; each receives what the one before returned."""
        self.open()
        found: dict[str, Array] = {}
        features: dict[str, Array] = dict(sample)
        before: GraphFile | None = None
        for graph, session in self._sessions:
            sources = feature_sources(before, graph) if before else {n: n for n in features}
            feed = {port: features[name] for port, name in sources.items()}
            outputs = session.run(None, _fitted(feed, graph, session))
            names = [port.name for port in session.get_outputs()]
            features, before = dict(zip(names, outputs, strict=True)), graph
            found[graph.component] = outputs[0]
        return found

    def _session(self, graph: GraphFile) -> Session:
        path = self._file(graph)
        session = open_session(self._engine, path)
        _check(graph, session, path)
        return session

    def _file(self, graph: GraphFile) -> Path:
        other = self._instead.get(graph.stem)
        return other or self._deployment.vision_file(graph, self._suffix)


def _check(graph: GraphFile, session: Session, path: Path) -> None:
    """Hold a session against the manifest; axes may lie otherwise than in the exported graph."""
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
    """Bring arrays into the form of the session: a board may take an image as bytes."""
    fitted = {}
    for port in session.get_inputs():
        array, shape = feed[port.name], tuple(port.shape)
        if not (port.dtype == np.uint8 and array.dtype == np.uint8):
            array = graph.calibration.graph_input(array)
        if array.dtype == np.float32:
            array = array.astype(port.dtype)
        fitted[port.name] = np.ascontiguousarray(array).reshape(shape)
    return fitted


def feature_sources(graph: GraphFile | Component, behind: GraphFile | Component) -> dict[str, str]:
    """Map each input of `behind` to the output of `graph` it receives, by name or else position.

    Raises:
        ContractError: Something has no source.
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
                hint="give it a `preprocess`, or make it take what the one before returns",
            )
        sources[port.name] = source.name
    return sources
