"""The vision side at run time: a prompt's samples become rows for the language model."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import ContractError
from .engine import open_session

if TYPE_CHECKING:
    from ..types import GraphFile, Prompt, Sample
    from .deployment import Deployment
    from .engine import Engine, Session

Array = np.ndarray[Any, Any]
_REMEMBERED = 64  # samples whose rows are kept, so that a conversation sees a picture once


class VisionModel(Protocol):
    """Whatever can turn a sample into rows."""

    def run(self, sample: Sample) -> Array:
        """Return float32 ``[rows, hidden]`` for one stored sample of the first component."""


class VisionSide:
    """Runs the pictures of prompts, each once.

    Args:
        model: Runs one sample.
    """

    def __init__(self, model: VisionModel) -> None:
        self._model = model
        self._known: dict[bytes, Array] = {}

    def rows(self, prompt: Prompt) -> Array:
        """Return what replaces the placeholders of `prompt`: float32 ``[m, hidden]``."""
        wanted = next(iter(prompt.vision_rows.values()), ())
        made = [self._run(sample) for samples in prompt.pictures.values() for sample in samples]
        rows = sum(map(len, made))
        if rows < len(wanted):
            raise ContractError(
                f"the prompt has places for {len(wanted)} rows; its pictures give {rows}",
                hint="make `prepare_prompt` and `export_vision` agree",
            )
        return np.concatenate(made)[: len(wanted)] if made else np.empty((0, 0), np.float32)

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
    """

    def __init__(self, deployment: Deployment, engine: Engine, suffix: str) -> None:
        self._deployment, self._engine, self._suffix = deployment, engine, suffix
        self._sessions: list[tuple[GraphFile, Session]] = []

    def run(self, sample: Sample) -> Array:
        """Run every graph in turn; each receives what the one before returned."""
        self._open()
        features: dict[str, Array] = dict(sample)
        before: GraphFile | None = None
        for graph, session in self._sessions:
            sources = feature_sources(before, graph) if before else {n: n for n in features}
            feed = {port: features[name] for port, name in sources.items()}
            outputs = session.run(None, _fitted(feed, graph, session))
            names = [port.name for port in session.get_outputs()]
            features, before = dict(zip(names, outputs, strict=True)), graph
        first = features[names[0]]
        return first.astype(np.float32).reshape(-1, first.shape[-1])

    def _open(self) -> None:
        if not self._sessions:
            files = ((g, self._deployment.vision_file(g, self._suffix))
                     for g in self._deployment.graphs)  # fmt: skip
            self._sessions = [(graph, open_session(self._engine, path)) for graph, path in files]


def _fitted(feed: Sample, graph: GraphFile, session: Session) -> dict[str, Array]:
    """Bring arrays into the form of the session: a board may take a picture as bytes."""
    fitted = {}
    for port in session.get_inputs():
        array, shape = feed[port.name], tuple(port.shape)
        if not (port.dtype == np.uint8 and array.dtype == np.uint8):
            array = graph.calibration.graph_input(array)
        if array.dtype == np.float32:
            array = array.astype(port.dtype)
        fitted[port.name] = np.ascontiguousarray(array).reshape(shape)
    return fitted


def feature_sources(graph: GraphFile, behind: GraphFile) -> dict[str, str]:
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
