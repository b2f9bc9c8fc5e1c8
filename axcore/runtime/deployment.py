"""A bundle opened for running: its files located and checked against the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import MANIFEST, Bundle
from ..checkpoint import ASSETS, Checkpoint, read_config
from ..choices import resolve
from ..errors import BundleError, UsageError
from ..foreign import read_json, reason
from ..job import Job
from ..language_model import table_file
from ..layer_files import build_command, data_file
from ..limits import CONFIG_BYTES, COUNT
from ..model_config import config_parts
from ..plain import shown
from ..progress import Silent
from ..system import require_linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..language_model import Embedding, LlmBuildArgs
    from ..progress import Progress
    from ..toolchains.contract import GraphFile
    from .families import Families

EMBEDDING_FILE = table_file("")
_FROM_CHECKPOINT = "correct it in the checkpoint, and run the same `axcore convert` again"
_LAYER = re.compile(r"(?P<kind>.+)_p(?P<chunk>\d+)_l(?P<layer>\d+)_together")


@dataclass(frozen=True)
class Deployment:
    """The files and settings that a model is run from.

    Attributes:
        bundle: The bundle, or the folder packaged for a board.
        job: The conversion. Its checkpoint has config and folder, but no tensors.
        graphs: The vision graphs, in the order data flows.
        llm: Build arguments of the language model, for its lengths.
        layers: Number of decoder layers.
        embedding: Shape and scale of the token embedding.
        tables: Further tables, see `Embedding.name`.
        stop_ids: Tokens that end an answer, from the checkpoint's configuration.
        hook: Calls a hook of the model's family, given its name and keyword arguments.
        progress: Where backends report what they open.
    """

    bundle: Bundle
    job: Job
    graphs: tuple[GraphFile, ...]
    llm: LlmBuildArgs
    layers: int
    embedding: Embedding
    stop_ids: frozenset[int]
    hook: Callable[..., Any]
    progress: Progress = field(default_factory=Silent)
    tables: tuple[Embedding, ...] = ()

    @classmethod
    def open(cls, folder: Path, registry: Families, progress: Progress | None = None) -> Deployment:
        """Read the manifest and the config of a bundle; weights are not read.

        Raises:
            BundleError: It is not a bundle, has only the vision side, or its small files have been
                changed.
            PluginNotFound: The plugin that made the bundle is not in use.
            AxcoreError: The system is not Linux.
        """
        require_linux()
        bundle = Bundle.open(folder)
        manifest, request = bundle.manifest, bundle.build_request
        if manifest.embedding is None:
            raise BundleError(
                f"{folder} holds only the vision side", hint="convert again without --vision-only"
            )
        bundle.check_files(set(_assets(bundle)))  # large files are checked on first use
        checkpoint = Checkpoint(folder, read_config(folder), (), {})
        model, entry = manifest.model, registry.of_bundle(manifest.model)
        card, family = entry.card, entry.family
        try:
            resolve(f"`{card.id}`", card.choices, bundle.options.choices)
        except UsageError as error:
            raise BundleError(
                f"{folder / MANIFEST} cannot be used: options.choices: {error.message}",
                hint="convert again with this version",
            ) from error
        job = Job(
            card, family, checkpoint, model.task, model.profile, bundle.options, manifest.target
        )
        return cls(
            bundle,
            job,
            request.graphs,
            request.llm,
            request.decoder_layers,
            manifest.embedding,
            _stop_ids(checkpoint),
            partial(registry.call, family),
            progress or Silent(),
            manifest.tables,
        )

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.bundle.folder

    @property
    def weights(self) -> str:
        """Fingerprint of the checkpoint's weights; empty in bundles that do not record it."""
        return self.bundle.manifest.checkpoint.fingerprint

    @property
    def assets(self) -> list[Path]:
        """The files copied from the checkpoint: configuration, tokenizer, processor."""
        return [self.bundle.path(name) for name in _assets(self.bundle)]

    def layer_files(self, suffix: str) -> tuple[list[Path], Path]:
        """Return the files of the layers, in order, and the file of the head.

        Args:
            suffix: ".onnx" or ".axmodel".

        Raises:
            BundleError: Files are missing, or were built for another chunk length.
        """
        found: dict[tuple[str, int], dict[int, Path]] = {}
        for path in self.folder.glob(f"*_together{suffix}"):
            match = _LAYER.fullmatch(path.name.removesuffix(suffix))
            if match and path.is_file():  # opening a pipe would wait for ever
                series = found.setdefault((match["kind"], int(match["chunk"])), {})
                series[int(match["layer"])] = path
        hint = f"run `{build_command(self.folder, suffix)}`"
        if suffix == ".onnx" and self.bundle.manifest.packaged_for is None:
            hint += "; --backend torch runs the checkpoint without a build"
        fitting = {kind: s for (kind, chunk), s in found.items() if chunk == self.llm.prefill_len}
        if len(fitting) != 1:
            raise BundleError(self._misfit(suffix, found), hint=hint)
        ((kind, series),) = fitting.items()
        head = self.folder / f"{kind}_post{suffix}"
        missing = [n for n in range(self.layers) if n not in series]
        if missing or not head.is_file():
            names = [f"{kind}_p{self.llm.prefill_len}_l{n}_together{suffix}" for n in missing]
            names += [] if head.is_file() else [head.name]
            raise BundleError(
                f"{len(names)} layer models are missing in {self.folder}: {names[0]}"
                + (" …" if names[1:] else ""),
                hint=hint,
            )
        return [series[n] for n in range(self.layers)], head

    def vision_file(self, graph: GraphFile, suffix: str) -> Path:
        """Return the file of a vision graph.

        Raises:
            BundleError: The file is missing, or it or its weights have been changed.
        """
        path = self.bundle.path(f"{graph.stem}{suffix}")
        _existing(path, "run the same `axcore convert`, or `axcore build`, again")
        self.check([path])
        return path

    def check(self, models: Iterable[Path]) -> None:
        """Compare models and their weights with what was written: the manifest, records of builds.

        A model that neither knows, such as one copied here by hand, is not checked.

        Raises:
            BundleError: One has been changed; the hint says what replaces it.
        """
        files = [(path, path.with_name(f"{path.name}.data"), data_file(path)) for path in models]
        self.bundle.check_files({path.name for those in files for path in those})

    @property
    def added_layers(self) -> tuple[int, ...]:
        """The decoder layers behind which rows of the vision side are added, ascending."""
        ports = (port for graph in self.graphs for port in graph.outputs)
        return tuple(sorted({port.layer for port in ports if port.layer is not None}))

    @property
    def embedding_file(self) -> Path:
        """The bfloat16 table, after its size and checksum were compared with the manifest."""
        return self.table_file(self.embedding)

    @property
    def table_files(self) -> list[Path]:
        """The files of all tables, the embedding's first; see `table_file`."""
        return [self.table_file(table) for table in (self.embedding, *self.tables)]

    def table_file(self, table: Embedding) -> Path:
        """Return the file of a table, after comparing its size and checksum with the manifest.

        Raises:
            BundleError: It is missing, or not as it was written.
        """
        file = self.folder / table_file(table.name)
        path = _existing(file, "run the same `axcore convert` again")
        rows, width = table.shape
        if path.stat().st_size != 2 * rows * width:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes; [{rows}, {width}] in bfloat16 has"
                f" {2 * rows * width}",
                hint="run the same `axcore convert` again",
            )
        self.bundle.check_files({path.name})
        return path

    def _misfit(self, suffix: str, found: Mapping[tuple[str, int], Any]) -> str:
        wanted = f"a chunk of {self.llm.prefill_len} tokens (p{self.llm.prefill_len})"
        if not found:
            return f"{self.folder} has no layer models (*_together{suffix})"
        listed = ", ".join(f"{kind}_p{chunk}" for kind, chunk in sorted(found))
        return f"{self.folder} needs one set of layer models for {wanted}\n  it has: {listed}"


def _assets(bundle: Bundle) -> list[str]:
    return sorted(name for name in bundle.manifest.files if name in ASSETS)


def _existing(path: Path, remedy: str) -> Path:
    if not path.is_file():
        raise BundleError(f"{path} is missing", hint=remedy)
    return path


def _stop_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """Return all configured end-of-sequence ids, from ``generation_config.json`` and configs.

    Raises:
        BundleError: One is no token's number; names file and entry.
    """
    path = checkpoint.folder / "generation_config.json"
    parts = [(checkpoint.folder / "config.json", part) for part in config_parts(checkpoint.config)]
    try:
        if path.is_file():
            parts.append((path, read_json(path, CONFIG_BYTES)))
        found = [_ids(file, part) for file, part in parts]
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} cannot be used: {reason(error)}", hint="run the same `axcore convert` again"
        ) from error
    return frozenset[int]().union(*found)


def _ids(file: Path, config: Any) -> set[int]:
    """Return what a config says of ``eos_token_id``: a number, several, or nothing."""
    if not isinstance(config, Mapping):
        raise BundleError(f"{file} holds no settings: {shown(config)}", hint=_FROM_CHECKPOINT)
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    for number in values:
        if type(number) is not int or not 0 <= number <= COUNT:
            raise BundleError(
                f"{file}: eos_token_id: {shown(number)} is not the number of a token",
                hint=_FROM_CHECKPOINT,
            )
    return set(values)
