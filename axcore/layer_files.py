"""Provenance of layer models, so that swapped, stale and mixed files are detected when loaded.

A layer model is a graph, ``<name>.onnx``, and its weights, ``<name>.onnx.data``. The metadata of
the graph records its provenance, and the weights file ends with a fingerprint of the same values.
Comparing the two finds weights that belong to another graph without hashing gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .component import Shape
from .errors import BundleError
from .foreign import decode_json, open_regular
from .language_model import Cache, DecoderLayer, TokenInput
from .limits import COUNT, LAYERS, PORTS, RANK, RECORD_BYTES
from .plain import parse, plain, shown

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = "axcore.shape_groups"
"""The metadata property that lists the shapes a graph may be run with."""

LAYER = "axcore.layer"
"""The metadata property that describes a layer which is not a plain one (see `LayerSpec`)."""

PLAIN_CACHES = ("K_cache", "V_cache")
SHARED_INPUTS = ("indices", "input", "mask")
"""What every layer takes behind its caches."""

OUTPUT = "output"

_BUILD, _WEIGHTS = "axcore.build", "axcore.weights"
_FINGERPRINT_BYTES = 32  # a sha256


@dataclass(frozen=True)
class LayerSpec:
    """What a layer model keeps and takes beyond the state; see `DecoderLayer`.

    Shapes alone do not tell it: how a cache is updated, whose it is, which tokens a mask shows.
    """

    caches: tuple[Cache, ...]
    window: int | None = None
    inputs: tuple[TokenInput, ...] = ()

    @classmethod
    def of(cls, layer: DecoderLayer) -> LayerSpec:
        """Describe a layer that a family's decoder has."""
        return cls(layer.caches, layer.window, layer.inputs)

    @classmethod
    def of_plain(cls, width: int) -> LayerSpec:
        """Describe a layer with keys and values of `width`, and nothing else."""
        return cls(tuple(Cache(name, (width,)) for name in PLAIN_CACHES))

    @classmethod
    def read(cls, properties: Mapping[str, str]) -> LayerSpec | None:
        """Parse a graph's metadata; None where they describe no layer.

        Raises:
            ValueError: The description is damaged; the message says where.
        """
        text = properties.get(LAYER)
        if text is None:
            return None
        if len(text) > RECORD_BYTES:
            raise ValueError(f"{LAYER}: it has more than {RECORD_BYTES} characters")
        spec = parse(cls, decode_json(text))
        spec.check()
        return spec

    @property
    def properties(self) -> dict[str, str]:
        """The metadata properties to store in the graph; none of a plain layer."""
        width = self.caches[0].shape[0] if self.caches else 0
        return {} if self == self.of_plain(width) else {LAYER: json.dumps(plain(self))}

    @property
    def own(self) -> tuple[Cache, ...]:
        """The caches that the layer itself updates."""
        return tuple(cache for cache in self.caches if cache.shared is None)

    @property
    def names(self) -> set[str]:
        """The names of all inputs and outputs."""
        return set(self._names)

    @property
    def _names(self) -> list[str]:
        inputs = [c.name for c in self.caches] + [i.name for i in self.inputs]
        return [*inputs, *SHARED_INPUTS, *(f"{c.name}_out" for c in self.own), OUTPUT]

    def check(self) -> None:
        """Refuse what no layer can be.

        Raises:
            ValueError: Names the cache or input.
        """
        names = self._names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{shown(repeated[0])} is the name of two inputs or outputs")
        if len(names) > PORTS:
            raise ValueError(f"it has {len(names)} inputs and outputs; at most {PORTS} are read")
        if self.window is not None and not 0 < self.window <= COUNT:
            raise ValueError(f"window: {self.window} is not between 1 and {COUNT}")
        for cache in self.caches:
            _check_cache(cache)
        for port in self.inputs:
            if port.start < 0 or port.width < 1 or port.start + port.width > COUNT:
                raise ValueError(
                    f"{shown(port.name)}: columns {port.start} to {port.start + port.width}"
                )

    def cache_shapes(self, history: int, count: int) -> dict[str, Shape]:
        """Return the shapes that caches have when `count` tokens follow `history` cached ones."""
        return {
            cache.name: (1, *cache.shape)
            if not cache.grows
            else (1, history if cache.shared is None else history + count, *cache.shape)
            for cache in self.caches
        }

    def made_shapes(self, count: int) -> dict[str, Shape]:
        """Return the shapes of what `count` tokens add to caches, or replace them by."""
        return {
            f"{cache.name}_out": (1, count, *cache.shape) if cache.grows else (1, *cache.shape)
            for cache in self.own
        }


def _check_cache(cache: Cache) -> None:
    """Refuse shapes that no cache has, and sharing of what does not grow, with a ValueError."""
    name, shape = shown(cache.name), cache.shape
    if not cache.name:
        raise ValueError("a cache has no name")
    if cache.grows and len(shape) != 1:
        raise ValueError(f"{name}: a cache that grows has one width, not {list(shape)}")
    if not (0 < len(shape) < RANK and min(shape) > 0 and math.prod(shape) <= COUNT):
        raise ValueError(f"{name}: {shown(list(shape))} is not the shape of a state")
    if cache.shared is not None and not cache.grows:
        raise ValueError(f"{name}: only caches that grow can be shared")
    if cache.shared is not None and not 0 <= cache.shared < LAYERS:
        raise ValueError(f"{name}: layer {cache.shared} is out of range")


def wrong_sharing(specs: Sequence[LayerSpec]) -> Iterator[str]:
    """Yield what is wrong with the caches that layers share, each as the end of a sentence."""
    for number, spec in enumerate(specs):
        for cache in spec.caches:
            if cache.shared is None:
                continue
            owners = specs[cache.shared].own if cache.shared < number else ()
            if replace(cache, shared=None) not in owners:
                yield (
                    f"layer {number} shares {shown(cache.name)} {list(cache.shape)} of layer"
                    f" {cache.shared}, which is not an earlier layer with such a cache"
                )


@dataclass(frozen=True)
class Provenance:
    """What a layer model was made from.

    Attributes:
        name: File name without suffix.
        build: Identifies the build; all files of one build share it.
        weights: `Checkpoint.fingerprint` of the source checkpoint.
    """

    name: str
    build: str
    weights: str

    @classmethod
    def of(cls, name: str, properties: Mapping[str, str]) -> Provenance | None:
        """Parse a graph's name and metadata; None when there is no provenance metadata."""
        if _BUILD not in properties:
            return None
        return cls(name, properties[_BUILD], properties.get(_WEIGHTS, ""))

    @property
    def properties(self) -> dict[str, str]:
        """The metadata properties to store in the graph; the name is stored as the graph's name."""
        return {_BUILD: self.build, _WEIGHTS: self.weights}

    @property
    def fingerprint(self) -> bytes:
        """Digest of this provenance; the weights file ends with it."""
        return hashlib.sha256("\n".join((self.name, self.build, self.weights)).encode()).digest()


def data_file(graph: Path) -> Path:
    """Return the weights file of a graph.

    The suffix of `graph` does not matter: an ``.axmodel`` may be a link to an ONNX graph.
    """
    return graph.with_name(f"{graph.stem}.onnx.data")


def build_command(folder: Path, suffix: str) -> str:
    """Return the command that builds layer models with `suffix`, ".onnx" or ".axmodel"."""
    return f"axcore build {folder} --toolchain {'onnx' if suffix == '.onnx' else 'pulsar2'}"


def read_provenance(graph: Path) -> Provenance | None:
    """Read the provenance of a graph file; None when the file is damaged or has none."""
    import onnx

    try:
        with open_regular(graph) as file:
            model = onnx.load_model_from_string(file.read())
    except Exception:  # onnx has no public name for protobuf's error
        return None
    return Provenance.of(model.graph.name, {prop.key: prop.value for prop in model.metadata_props})


def weights_match(graph: Path, provenance: Provenance) -> bool:
    """Whether the weights file of a graph ends with the fingerprint of `provenance`."""
    try:
        with open_regular(data_file(graph)) as file:
            file.seek(-_FINGERPRINT_BYTES, 2)
            return file.read() == provenance.fingerprint
    except (OSError, ValueError):  # missing, or shorter than a fingerprint: it cannot seek there
        return False


def check_provenance(provenances: Mapping[Path, Provenance | None], weights: str) -> None:
    """Refuse files from another layer, build or checkpoint.

    Files without provenance metadata are accepted: compiled ``.axmodel`` files have none.

    Args:
        provenances: Provenance of each graph file.
        weights: Fingerprint of the bundle's checkpoint; empty when unknown.

    Raises:
        BundleError: Names the first file that does not match.
    """
    # The build of the majority counts as the bundle's own, so that the odd file is the one named.
    builds = [provenance.build for provenance in provenances.values() if provenance]
    for graph, provenance in provenances.items():
        if provenance and (reason := _mismatch(graph, provenance, builds, weights)):
            raise BundleError(
                f"{graph} {reason}",
                hint=f"run `{build_command(graph.parent, '.onnx')}`, which replaces it",
            )


def _mismatch(graph: Path, provenance: Provenance, builds: list[str], weights: str) -> str:
    if provenance.name != graph.stem:
        return f"contains the layer model {provenance.name}"
    if provenance.build != max(builds, key=builds.count):
        return "is from another build than the files beside it"
    if weights and provenance.weights != weights:
        return "was built from other weights than the bundle"
    if not weights_match(graph, provenance):
        return f"does not match its weights: {data_file(graph).name} is from another layer or build"
    return ""
