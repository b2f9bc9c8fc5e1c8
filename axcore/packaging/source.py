"""What a board folder is made from: a bundle that was built, checked against its manifest."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle import Bundle
from ..errors import BundleError
from ..runtime.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..plugins import PluginInfo, Registry
    from ..types import ModelCard

COMPILED, PORTABLE = ".axmodel", ".onnx"
_ASSETS = (".json", ".txt", ".jinja", ".model")


@dataclass(frozen=True)
class Models:
    """The models of a built bundle.

    Attributes:
        suffix: `COMPILED` for a board's NPU, or `PORTABLE` for ONNX Runtime.
        vision: In the order data flows.
        layers: In their order.
        post: Final norm and head.
    """

    suffix: str
    vision: tuple[Path, ...]
    layers: tuple[Path, ...]
    post: Path

    @property
    def files(self) -> list[Path]:
        """All of them, and the files in which ONNX models keep their weights."""
        models = [*self.vision, *self.layers, self.post]
        weights = [path.with_name(f"{path.name}.data") for path in models]
        return models + [path for path in weights if path.is_file()]


@dataclass(frozen=True)
class Source:
    """A bundle that is to be packaged.

    Attributes:
        bundle: Its manifest.
        deployment: Its parts.
        plugin: The plugin of the model's family.
    """

    bundle: Bundle
    deployment: Deployment
    plugin: PluginInfo

    @classmethod
    def open(cls, folder: Path, registry: Registry) -> Source:
        """Read a bundle; see `Deployment.open`."""
        deployment = Deployment.open(folder, registry)
        return cls(Bundle.open(folder), deployment, registry.plugins[deployment.job.family])

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.bundle.folder

    @property
    def card(self) -> ModelCard:
        """The model, as its family describes it."""
        return self.deployment.job.card

    @cached_property
    def models(self) -> Models:
        """The models that a toolchain made: compiled ones if there is any.

        Raises:
            BundleError: Some are missing, empty, changed since they were exported, or left over.
        """
        suffix = COMPILED if any(self.folder.glob(f"*{COMPILED}")) else PORTABLE
        layers, post = self.deployment.layer_files(suffix)
        vision = [self.deployment.vision_file(graph, suffix) for graph in self.deployment.graphs]
        models = Models(suffix, tuple(vision), tuple(layers), post)
        _check_models(models)
        self.bundle.check_files({path.name for path in models.files})
        return models

    def embedding(self) -> Path:
        """Return the token embedding: raw bfloat16 ``[vocabulary, hidden]``, row-major.

        Raises:
            BundleError: It is missing, was changed, or has another size than the manifest says.
        """
        path = self.deployment.embedding_file
        self.bundle.check_files({path.name})
        return path

    def assets(self) -> list[Path]:
        """Return the files copied from the checkpoint: configuration, tokenizer, processor.

        Raises:
            BundleError: One is missing or was changed.
        """
        stems = tuple(f"{graph.stem}." for graph in self.deployment.graphs)
        names = {
            name
            for name in self.bundle.files
            if name.endswith(_ASSETS) and "/" not in name and not name.startswith(stems)
        }
        self.bundle.check_files(names)
        return [self.folder / name for name in sorted(names)]


def _check_models(models: Models) -> None:
    if empty := [path for path in models.files if not path.stat().st_size]:
        raise BundleError(f"{empty[0]} is empty", hint="remove it, and run `axcore build` again")
    first, count = models.layers[0], len(models.layers)
    beyond = first.with_name(first.name.replace("_l0_", f"_l{count}_"))
    if beyond.exists():
        raise BundleError(
            f"{beyond} is of another build: the model has {count} layers",
            hint="remove the files of the other build",
        )


def link(paths: Iterable[Path], folder: Path) -> None:
    """Put large files into `folder`: as hard links, or as copies on another disk."""
    for path in paths:
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copyfile(path, folder / path.name)
