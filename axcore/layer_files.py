"""What the files of a layer model say of themselves, so that a stranger among them is noticed.

A layer model is a graph, ``<name>.onnx``, and its weights, ``<name>.onnx.data``. The graph says in
its metadata what it is; the weights end with a seal made from the same words.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GROUPS = "axcore.shape_groups"
"""The metadata property that lists the shapes a graph may be run with."""

_BUILD, _WEIGHTS = "axcore.build", "axcore.weights"
SEAL_BYTES = 32


@dataclass(frozen=True)
class Origin:
    """Where a layer model comes from.

    Attributes:
        name: Of the file, without suffix.
        build: The same in all files of one build, and in no other's.
        weights: `Checkpoint.fingerprint` of what it was made from.
    """

    name: str
    build: str
    weights: str

    @classmethod
    def of(cls, name: str, properties: Mapping[str, str]) -> Origin | None:
        """Read a graph's name and metadata; None where they say nothing."""
        if _BUILD not in properties:
            return None
        return cls(name, properties[_BUILD], properties.get(_WEIGHTS, ""))

    @property
    def properties(self) -> dict[str, str]:
        """What a graph's metadata says beside its name."""
        return {_BUILD: self.build, _WEIGHTS: self.weights}

    @property
    def seal(self) -> bytes:
        """The last `SEAL_BYTES` bytes of the weights."""
        return hashlib.sha256("\n".join((self.name, self.build, self.weights)).encode()).digest()


def data_file(graph: Path) -> Path:
    """Return where the weights of a graph lie, also for a link to it of another suffix."""
    return graph.with_name(f"{graph.stem}.onnx.data")


def build_command(folder: Path, suffix: str) -> str:
    """Return the command that makes layer models of a suffix: ".onnx", or ".axmodel"."""
    return f"axcore build {folder} --toolchain {'onnx' if suffix == '.onnx' else 'pulsar2'}"


def read_origin(graph: Path) -> Origin | None:
    """Return what a graph says of itself; None where it is damaged or says nothing."""
    import onnx

    try:
        model = onnx.load_model(graph, load_external_data=False)
    except Exception:  # protobuf names no error that onnx makes public
        return None
    return Origin.of(model.graph.name, {prop.key: prop.value for prop in model.metadata_props})


def is_sealed(graph: Path, origin: Origin) -> bool:
    """Say whether the weights of a graph are those of `origin`."""
    try:
        with data_file(graph).open("rb") as file:
            file.seek(-SEAL_BYTES, 2)
            return file.read() == origin.seal
    except OSError:  # also where there are fewer bytes
        return False


def check_origins(origins: Mapping[Path, Origin | None], weights: str) -> None:
    """Refuse a file of another layer, build or checkpoint. What says nothing of itself passes.

    Args:
        origins: Graph to what it says.
        weights: Fingerprint of the bundle's checkpoint; empty where it is not known.

    Raises:
        BundleError: Names the first stranger.
    """
    builds = [origin.build for origin in origins.values() if origin]
    for graph, origin in origins.items():
        if origin and (reason := _stranger(graph, origin, builds, weights)):
            raise BundleError(
                f"{graph} {reason}",
                hint=f"run `{build_command(graph.parent, '.onnx')}`, which replaces it",
            )


def _stranger(graph: Path, origin: Origin, builds: list[str], weights: str) -> str:
    if origin.name != graph.stem:
        return f"is really {origin.name}"
    if origin.build != max(builds, key=builds.count):
        return "is not of the same build as the files beside it"
    if weights and origin.weights != weights:
        return "was built from other weights than the rest of the bundle"
    if not is_sealed(graph, origin):
        return f"has a {data_file(graph).name} of another layer or build beside it"
    return ""
