"""A finished conversion: the manifest and the files it lists.

A bundle is something that people send each other, so nothing in its manifest is trusted: values
have the types and ranges below, and names stay in the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .component import Port
from .errors import BundleError
from .files import Checksums, Content
from .foreign import check_name, inside, read_json, reason
from .language_model import TABLE_NAME, Embedding
from .limits import COUNT, LAYERS, RECORD_BYTES
from .model_card import Profile
from .plain import parse, plain, shown
from .request import Options
from .step import BUILD, STATE, builds, check_state
from .toolchains.contract import BuildRequest

MANIFEST = "axcore.json"
PACKAGED = "packaged_for"
"""The manifest's entry that names the runtime a folder was packaged for."""


CHECKSUMS = f"{STATE}/checksums.json"
"""The record of checksums of a bundle's files (see `Checksums`)."""

SCHEMA = 2
_HINT = "give the folder that `axcore convert` wrote, or finish it by the same command"
_WORD = re.compile(r"\w[\w./+-]*", re.ASCII)  # fit for a command line: no option, no shell syntax
_DTYPES = {
    *("float64", "float32", "float16", "bfloat16", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


@dataclass(frozen=True)
class ModelRecord:
    """The model that a bundle is of; see `ModelCard`.

    Attributes:
        id, repo, licence: As its card has them.
        family: The plugin it comes from.
        plugin: That plugin's distribution and version.
        task, profile: How it is used.
    """

    id: str
    task: str
    profile: Profile
    repo: str = ""
    licence: str = ""
    family: str = ""
    plugin: str = ""


@dataclass(frozen=True)
class CheckpointRecord:
    """The checkpoint that a bundle was made from: folder, number and bytes of tensors, identity."""

    folder: str
    tensors: int = 0
    bytes: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class ArchiveRecord:
    """An archive of calibration samples that was given: name, path or address, and SHA-256."""

    name: str
    source: str
    sha256: str


@dataclass(frozen=True)
class ComponentRecord:
    """A component of the vision side: ports, stages, and what was found of its graphs."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stages: tuple[str, ...]
    findings: tuple[Mapping[str, Any], ...] | None = None
    verification: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``axcore.json``; ``docs/json.md`` says what each field means."""

    schema: int
    model: ModelRecord
    checkpoint: CheckpointRecord
    options: Options
    vision_only: bool
    toolchain: str
    target: str
    calibration_archive: ArchiveRecord | None = None
    embedding: Embedding | None = None
    tables: tuple[Embedding, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    components: tuple[ComponentRecord, ...] = ()
    build: BuildRequest
    notes: tuple[str, ...]
    files: Mapping[str, Content]
    packaged_for: str | None = None

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: There is none.
            BundleError: It cannot be read, is of another version, or has a wrong value (names the
                path in the file, and what was expected).
        """
        try:
            data = read_json(path, RECORD_BYTES)
            schema = data.get("schema") if isinstance(data, dict) else None
            if schema != SCHEMA:
                raise BundleError(
                    f"{path} has schema {shown(schema)}; this axcore reads {SCHEMA}",
                    hint="convert again, or use the axcore that wrote it",
                )
            manifest = parse(cls, data)
            _check(manifest)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be used: {reason(error)}", hint=_HINT) from error
        return manifest

    def data(self) -> dict[str, Any]:
        """Return it as JSON-like data."""
        return {
            name: value
            for name, value in plain(self).items()
            if name != PACKAGED or value is not None
        }

    def dump(self) -> str:
        """Return it as the text of ``axcore.json``."""
        return json.dumps(self.data(), indent=2) + "\n"


@dataclass(frozen=True)
class Bundle:
    """A bundle folder.

    Attributes:
        folder: Where it lies.
        manifest: The content of ``axcore.json``.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read the manifest.

        Raises:
            BundleError: `folder` is no bundle, an unfinished one, or of a later axcore.
        """
        try:
            return cls(folder, Manifest.read(folder / MANIFEST))
        except FileNotFoundError:
            raise BundleError(
                f"{folder} holds no finished bundle: no {MANIFEST}", hint=_HINT
            ) from None

    def __repr__(self) -> str:
        return f"<Bundle {self.manifest.model.id} in {self.folder}>"

    @property
    def files(self) -> dict[str, Path]:
        """Every file of the bundle, by name."""
        return {name: self.path(name) for name in self.manifest.files}

    @property
    def graphs(self) -> list[Path]:
        """The ONNX files, in the order data flows."""
        return [self.path(f"{graph.stem}.onnx") for graph in self.build_request.graphs]

    @property
    def build_request(self) -> BuildRequest:
        """What a toolchain is told of this bundle."""
        return self.manifest.build

    @property
    def options(self) -> Options:
        """What the user chose."""
        return self.manifest.options

    @property
    def built(self) -> dict[str, Content]:
        """What builds wrote into the folder, by name; empty where the records of them are gone."""
        steps = [step for made in builds(self.folder).values() for step in made]
        return {name: content for step in steps for name, content in step.files.items()}

    def path(self, name: str) -> Path:
        """Return where a file of the bundle lies.

        Raises:
            BundleError: A link leads out of the folder.
        """
        try:
            return inside(self.folder, name)
        except ValueError as error:
            raise BundleError(
                f"{self.folder}: {error}", hint="copy the whole folder again, without links"
            ) from error

    def check_files(self, names: set[str] | None = None) -> None:
        """Compare size and content of files with the manifest, and with the records of builds.

        What neither lists is not checked.

        Args:
            names: Which files; all, unless they are given.

        Raises:
            BundleError: Files are missing or were changed; names them.
        """
        check_state(self.folder)
        expected = {**self.built, **self.manifest.files}
        checksums = Checksums(self.folder / CHECKSUMS)
        wrong = {
            name: reason
            for name in expected
            if (names is None or name in names)
            and (reason := self._difference(name, expected[name], checksums))
        }
        checksums.save()
        if wrong:
            raise BundleError(
                f"{self.folder} is not as it was written\n  "
                + "\n  ".join(list(wrong.values())[:10]),
                hint=self._remedy(wrong),
            )

    def _difference(self, name: str, content: Content, checksums: Checksums) -> str:
        """Say how a file differs from what was written."""
        path = self.path(name)
        try:
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != content.size:
                return f"{name} has {size} bytes, not {content.size}"
            return "" if checksums.of(path) == content else f"{name} has another content"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read: {reason(error)}"

    def _remedy(self, wrong: Mapping[str, str]) -> str:
        if self.manifest.packaged_for is not None:
            return "package the bundle again, or copy the whole folder again"
        if wrong.keys() & self.manifest.files.keys():
            return "run the same `axcore convert` again; what is whole is kept"
        for toolchain, steps in builds(self.folder).items():
            if any(wrong.keys() & step.files.keys() for step in steps):
                return (
                    f"run `axcore build {self.folder} --toolchain {toolchain}`, which replaces it;"
                    f" if it is yours, remove {self.folder / STATE / BUILD}{toolchain}"
                )
        return _HINT


def _check(manifest: Manifest) -> None:
    """Refuse names that lead out of the folder, words unfit for a command, absurd numbers.

    Raises:
        ValueError: The message begins with the path in the manifest.
    """
    for name in manifest.files:
        check_name(name)
        if name.split("/")[0] == STATE:
            raise ValueError(f"files: {shown(name)} is in the state folder")
    for where, word in _words(manifest):
        if not _WORD.fullmatch(word) or ".." in word:
            raise ValueError(f"{where}: {shown(word)} is not a plain name")
    for where, numbers, most in _numbers(manifest):
        if wrong := [number for number in numbers if not 0 < number <= most]:
            raise ValueError(f"{where}: {shown(wrong[0])} is not between 1 and {most}")
    _check_build(manifest.build)
    _check_tables(manifest)


def _check_tables(manifest: Manifest) -> None:
    names = [table.name for table in manifest.tables]
    if (manifest.embedding and manifest.embedding.name) or (names and not manifest.embedding):
        raise ValueError("embedding: it comes first, and has no name")
    for where, table in _tables(manifest):
        if len(table.shape) != 2:
            raise ValueError(f"{where}.shape: it has to have two numbers")
    for number, name in enumerate(names):
        if not TABLE_NAME.fullmatch(name) or names.index(name) < number:
            raise ValueError(f"tables.{number}.name: {shown(name)} is not a word of its own")


def _tables(manifest: Manifest) -> list[tuple[str, Embedding]]:
    """Return the embedding and the tables behind it, each with its path in the manifest."""
    embedding = [("embedding", manifest.embedding)] if manifest.embedding else []
    return embedding + [(f"tables.{n}", table) for n, table in enumerate(manifest.tables)]


def _check_build(build: BuildRequest) -> None:
    if not Path(build.checkpoint).is_absolute():
        check_name(build.checkpoint)
    seen: set[str | None] = {"", None}
    for number, graph in enumerate(build.graphs):
        if graph.after not in seen:
            raise ValueError(
                f"build.graphs.{number}: no component before it is {shown(graph.after)}"
            )
        seen.add(graph.component)
        for name in (graph.stem, graph.archive):
            check_name(name)
            if "/" in name:
                raise ValueError(f"build.graphs.{number}: {shown(name)} is not a name of one file")
        for port in (*graph.inputs, *graph.outputs):
            if port.dtype not in _DTYPES:
                raise ValueError(f"build.graphs.{number}: {shown(port.dtype)} is not a dtype")
            if port.layer is not None and port.layer not in range(build.decoder_layers):
                raise ValueError(f"build.graphs.{number}: there is no layer {shown(port.layer)}")


def _numbers(manifest: Manifest) -> Iterator[tuple[str, Sequence[int], int]]:
    """Yield numbers that must be positive: where they stand, and the largest that is taken."""
    build, profile = manifest.build, manifest.model.profile
    yield "build.decoder_layers", [build.decoder_layers], LAYERS
    yield "build.llm.parallel", [build.llm.parallel], COUNT
    for where, lengths in (("build.llm", build.llm), ("model.profile", profile)):
        yield where, [lengths.prefill_len, lengths.kv_cache_len], COUNT
        yield f"{where}.last_kv_cache_len", lengths.last_kv_cache_len, COUNT
    yield "model.profile", [profile.height, profile.width, profile.images], COUNT
    for where, table in _tables(manifest):
        yield f"{where}.shape", table.shape, COUNT
    for number, graph in enumerate(build.graphs):
        for port in (*graph.inputs, *graph.outputs):
            yield f"build.graphs.{number}", port.shape, COUNT


def _words(manifest: Manifest) -> list[tuple[str, str]]:
    """Return what may stand in a command line or a script, each with its path."""
    build = manifest.build
    words = [
        ("model.id", manifest.model.id),
        ("toolchain", manifest.toolchain),
        ("build.model", build.model),
        ("build.llm.hidden_state_type", build.llm.hidden_state_type),
        ("build.llm.weight_type", build.llm.weight_type),
    ]
    if build.llm.model_type is not None:
        words.append(("build.llm.model_type", build.llm.model_type))
    for number, graph in enumerate(build.graphs):
        names = [graph.stem, *(port.name for port in (*graph.inputs, *graph.outputs))]
        words += [(f"build.graphs.{number}", name) for name in names]
    return words
