"""The built bundle that a board folder is made from, checked against its manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..display import printable
from ..errors import BundleError
from ..foreign import load
from ..layer_files import check_provenance, read_provenance
from ..limits import RECORD_BYTES
from ..plain import shown
from ..runtime.deployment import Deployment
from ..toolchains.tool import report_file

if TYPE_CHECKING:
    from ..discovery import PluginInfo
    from ..model_card import ModelCard
    from ..plugins import Registry
    from ..progress import Progress

COMPILED, PORTABLE = ".axmodel", ".onnx"
_REBUILD = "remove it, and run `axcore build` again"


@dataclass(frozen=True)
class _Result:
    """What a build kept of a graph, as far as it matters here."""

    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Models:
    """The models of a built bundle.

    Attributes:
        suffix: `COMPILED` for a board's NPU, or `PORTABLE` for ONNX Runtime.
        vision: In the order data flows.
        layers: The decoder layers, in order.
        post: Final norm and output head.
    """

    suffix: str
    vision: tuple[Path, ...]
    layers: tuple[Path, ...]
    post: Path

    @property
    def files(self) -> list[Path]:
        """All model files, weights files of ONNX models included."""
        models = [*self.vision, *self.layers, self.post]
        weights = [path.with_name(f"{path.name}.data") for path in models]
        return models + [path for path in weights if path.is_file()]


@dataclass(frozen=True)
class Source:
    """The bundle to package.

    Attributes:
        deployment: The opened bundle.
        plugin: The plugin of the model's family.
    """

    deployment: Deployment
    plugin: PluginInfo

    @classmethod
    def open(cls, folder: Path, registry: Registry) -> Source:
        """Read a bundle; see `Deployment.open`."""
        deployment = Deployment.open(folder, registry)
        return cls(deployment, registry.plugins[deployment.job.family])

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.deployment.folder

    @property
    def card(self) -> ModelCard:
        """The model, as its family describes it."""
        return self.deployment.job.card

    @property
    def suffix(self) -> str:
        """Suffix of the models to package: compiled ones if there are any.

        Raises:
            BundleError: One is a link to an ONNX model, made to try board scripts on a PC.
        """
        found = sorted(self.folder.glob(f"*{COMPILED}"))
        for path in found:
            if (target := path.resolve()).suffix == PORTABLE:
                raise BundleError(
                    f"{path} is a link to {target.name}, which is not a compiled model",
                    hint="remove such links:"
                    f" find {self.folder} -name '*{COMPILED}' -type l -delete",
                )
        return COMPILED if found else PORTABLE

    def check_results(self, accepted: bool, progress: Progress) -> None:
        """Look at what the build of the compiled models came to, as far as that was kept.

        Raises:
            BundleError: A result does not hold, and that is not `accepted`, else it is a warning;
                or what was kept is damaged.
        """
        if self.suffix != COMPILED:
            return
        faults = []
        for graph in self.deployment.graphs:
            path = self.folder / report_file(graph.stem)
            if os.path.lexists(path):
                kept = load(_Result, path, RECORD_BYTES, BundleError, hint=_REBUILD)
                faults += [f"{graph.stem}: {printable(text)}" for text in kept.faults]
        if faults and not accepted:
            raise BundleError(
                f"{len(faults)} results of the build do not hold\n  " + "\n  ".join(faults),
                hint="choose another precision or other calibration images, convert and build"
                " again; or, where answers are good all the same, package with --accept-faults",
            )
        for fault in faults:
            progress.warn(fault)

    @cached_property
    def models(self) -> Models:
        """The models that a toolchain built.

        Raises:
            BundleError: Some are missing, empty, changed since the build, or from another build.
        """
        suffix = self.suffix
        layers, post = self.deployment.layer_files(suffix)
        vision = [self.deployment.vision_file(graph, suffix) for graph in self.deployment.graphs]
        models = Models(suffix, tuple(vision), tuple(layers), post)
        _check_models(models)
        if suffix == PORTABLE:
            graphs = [*layers, post]
            provenances = {path: read_provenance(path) for path in graphs}
            check_provenance(provenances, self.deployment.weights)
        self.deployment.check([*layers, post])
        return models


def _check_models(models: Models) -> None:
    if empty := [path for path in models.files if not (path.is_file() and path.stat().st_size)]:
        raise BundleError(
            f"{empty[0]} is empty or a broken link",
            hint=_REBUILD,
        )
    for path in models.files:
        if not path.name.isprintable():  # nor can settings in UTF-8 hold bytes that are none
            raise BundleError(
                f"{shown(path.name)} is not a name that every file system holds",
                hint="rename it, and run `axcore build` again",
            )
    first, count = models.layers[0], len(models.layers)
    beyond = first.with_name(first.name.replace("_l0_", f"_l{count}_"))
    if beyond.exists():
        raise BundleError(
            f"{beyond} is from another build: the model has {count} layers",
            hint="remove the files of the other build",
        )
