"""The vision side at run time: turn a prompt's samples into rows for the language model."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from operator import gt
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from ..component import feature_sources, heads
from ..errors import BundleError, ContractError
from ..system import trim_memory
from .engine import open_session, shape_groups

if TYPE_CHECKING:
    from collections.abc import Callable
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
    """Turns samples into features."""

    def open(self) -> None:
        """Load the model if it is not loaded yet; `features` does so as well."""

    def close(self) -> None:
        """Free what `open` took, if anything."""

    def features(self, sample: Sample, first: str = "") -> dict[str, Array]:
        """Run a chain of components on a sample and return all that they return, in order.

        Args:
            sample: A stored sample of the chain's first component.
            first: Name of that component; empty for the first of all.

        Returns:
            The first output of each component by the component's name; further ones by
            `further_name`.
        """


def further_name(component: str, output: str) -> str:
    """Return the name of a further output of a component among the features of its chain."""
    return f"{component}/{output}"


class VisionRows(NamedTuple):
    """Rows for the language model.

    Attributes:
        hidden: float32 ``[m, hidden]``, in place of token embeddings.
        added: Decoder layer to float32 ``[m, hidden]``: rows of the same tokens, added to the state
            behind that layer.
    """

    hidden: Array
    added: Mapping[int, Array]

    def first(self, count: int) -> VisionRows:
        """Return the first `count` rows."""
        return VisionRows(self.hidden[:count], {n: a[:count] for n, a in self.added.items()})

    @classmethod
    def joined(cls, parts: Sequence[VisionRows]) -> VisionRows:
        """Return the rows of one or several, in order."""
        layers = parts[0].added
        added = {layer: np.concatenate([part.added[layer] for part in parts]) for layer in layers}
        return cls(np.concatenate([part.hidden for part in parts]), added)


class VisionSide:
    """Runs the samples of prompts and caches their rows.

    Args:
        model: Runs them.
        graphs: The vision graphs of the deployment, which say what belongs to which chain.
        keep: Whether the model stays open between prompts; else it is closed once it has made the
            rows of one.
    """

    def __init__(
        self, model: VisionModel, graphs: Sequence[GraphFile], *, keep: bool = True
    ) -> None:
        self._model, self._keep = model, keep
        self._load_s = self._rows_s = 0.0
        self._heads = heads(graph_sources(graphs))
        self._layers: dict[str, dict[str, int]] = {name: {} for name in self._heads}
        for graph in graphs:
            self._layers[graph.component] |= {
                port.name: port.layer for port in graph.outputs if port.layer is not None
            }
        self._known: dict[tuple[str, bytes], VisionRows] = {}

    def rows(self, prompt: Prompt) -> dict[str, VisionRows]:
        """Return the rows for the places of `prompt`, by component; none where it has no place.

        Raises:
            ContractError: Places and samples do not belong together; the message has the numbers.
        """
        started = time.perf_counter()
        try:
            self._check(prompt)
            made = {name: self._placed(prompt, name) for name in prompt.vision_rows}
        except ContractError as error:
            error.hint = "make `prepare_prompt` and `export_vision` agree"
            raise
        finally:
            if not self._keep:
                self._model.close()
            self._rows_s += time.perf_counter() - started
        return {name: rows for name, rows in made.items() if rows}

    def spent(self) -> tuple[float, float]:
        """Return the seconds of loading and of all else since the last call."""
        found = self._load_s, self._rows_s - self._load_s
        self._load_s = self._rows_s = 0.0
        return found

    def forget(self) -> None:
        """Drop the rows of every image."""
        self._known.clear()

    def _check(self, prompt: Prompt) -> None:
        """Refuse samples and places of components that there are not, and places that clash."""
        taken = set()
        for name in prompt.vision_rows:
            if name not in self._heads:
                raise ContractError(
                    f"the prompt has places for `{name}`; components: {', '.join(self._heads)}"
                )
            taken.add(self._heads[name])
        for name, samples in prompt.images.items():
            if samples and name not in taken:
                raise ContractError(
                    f"the prompt has {len(samples)} samples for `{name}`, and no place for rows of"
                    " a chain that begins with it"
                )
        places = np.concatenate([np.empty(0, np.int64), *prompt.places.values()])
        inside = (places >= 0) & (places < len(prompt.input_ids))
        if places.dtype != np.int64 or not inside.all() or len(np.unique(places)) < len(places):
            raise ContractError(
                f"the prompt's places for rows are not different indices, int64, of its"
                f" {len(prompt.input_ids)} tokens"
            )

    def _placed(self, prompt: Prompt, name: str) -> VisionRows | None:
        """Return exactly as many rows of a component as it has places; None without any."""
        places = prompt.vision_rows[name]
        samples = prompt.images.get(self._heads[name], ())
        runs = [self._run(name, sample) for sample in samples]
        counts = [len(run.hidden) for run in runs]
        if isinstance(places, np.ndarray):
            if len(places) != sum(counts):
                raise ContractError(
                    f"the prompt has places for {len(places)} rows of `{name}`;"
                    f" its {len(runs)} samples give {sum(counts)}"
                )
        elif len(places) != len(runs) or any(map(gt, map(len, places), counts)):
            raise ContractError(
                f"the prompt has places for {[len(own) for own in places]} rows of `{name}`;"
                f" its samples give {counts}"
            )
        else:
            runs = [run.first(len(own)) for run, own in zip(runs, places, strict=True)]
        return VisionRows.joined(runs) if runs else None

    def _run(self, name: str, sample: Sample) -> VisionRows:
        key = name, _digest(sample)
        if key not in self._known:
            started = time.perf_counter()
            self._model.open()
            self._load_s += time.perf_counter() - started
            features = self._model.features(sample, self._heads[name])
            added = {
                layer: _as_rows(features[further_name(name, port)])
                for port, layer in self._layers[name].items()
            }
            self._known[key] = VisionRows(_as_rows(features[name]), added)
        # Dicts keep insertion order, so the least recently used entry is the first.
        self._known[key] = self._known.pop(key)
        while len(self._known) > _CACHED:
            self._known.pop(next(iter(self._known)))
        return self._known[key]


def _digest(sample: Sample) -> bytes:
    identity = hashlib.sha256()
    for name, array in sample.items():
        identity.update(f"{name} {array.dtype} {array.shape};".encode())
        identity.update(np.ascontiguousarray(array).tobytes())
    return identity.digest()


def _as_rows(features: Array) -> Array:
    return features.astype(np.float32).reshape(-1, features.shape[-1])


def graph_sources(graphs: Sequence[GraphFile]) -> dict[str, str]:
    """Map each component to the one whose outputs it takes; "" for the first of a chain."""
    found: dict[str, str] = {}
    before = ""
    for graph in graphs:
        found.setdefault(graph.component, before if graph.after is None else graph.after)
        before = graph.component
    return found


class VisionChain(ABC):
    """A `VisionModel` of parts, which are opened on first use and kept until `close`.

    Args:
        deployment: The bundle, which says what takes the outputs of what.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._parts: list[tuple[str, Part, Run]] = []

    @abstractmethod
    def _opened(self) -> list[tuple[str, Part, Run]]:
        """Return the component's name of each part, the part, and what runs it."""

    def open(self) -> None:
        """Open all parts, once."""
        if not self._parts:
            self._parts = self._opened()

    def close(self) -> None:
        """Drop all parts, and give their memory back to the system."""
        if self._parts:
            self._parts = []
            trim_memory()

    def features(self, sample: Sample, first: str = "") -> dict[str, Array]:
        """Run the parts of a chain in order; each receives the outputs of the one before."""
        self.open()
        sources = graph_sources(self._deployment.graphs)
        first = first or next(iter(sources))
        made: dict[str, tuple[Part, dict[str, Array]]] = {}
        for component, part, run in self._parts:
            before = made.get(component) or made.get(sources[component])
            if before:
                ports = feature_sources(before[0], part)
                made[component] = part, run({port: before[1][name] for port, name in ports.items()})
            elif component == first:
                _check_sample(part, sample)
                made[component] = part, run(sample)
        return {
            name if place == 0 else further_name(name, port): array
            for name, (_, outputs) in made.items()
            for place, (port, array) in enumerate(outputs.items())
        }


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
        super().__init__(deployment)
        self._engine, self._suffix, self._instead = engine, suffix, instead

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
