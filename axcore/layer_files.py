"""Provenance of layer models, so that swapped, stale and mixed files are detected when loaded.

A layer model is a graph, ``<name>.onnx``, and its weights, ``<name>.onnx.data``. The metadata of
the graph records its provenance, and the weights file ends with a fingerprint of the same values.
Comparing the two finds weights that belong to another graph without hashing gigabytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BundleError
from .foreign import open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GROUPS = "axcore.shape_groups"
"""The metadata property that lists the shapes a graph may be run with."""

_BUILD, _WEIGHTS = "axcore.build", "axcore.weights"
_FINGERPRINT_BYTES = 32  # a sha256


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
