"""A finished conversion: the manifest and the files it lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import BundleError
from .files import Checksums
from .plain import parse
from .request import Options
from .toolchains.contract import BuildRequest

MANIFEST = "axcore.json"
PACKAGED = "packaged_for"
"""The manifest's entry that names the runtime a folder was packaged for."""

STATE = ".axcore"
"""Folder in a bundle for what is no result: unfinished steps, records, the lock."""

CHECKSUMS = f"{STATE}/checksums.json"
"""The record of checksums of a bundle's files (see `Checksums`)."""

SCHEMA = 2
T = TypeVar("T")
_FIELDS = {
    *("model", "checkpoint", "options", "vision_only"),
    *("toolchain", "target", "build", "notes", "files"),
}
_HINT = "give the folder that `axcore convert` wrote, or finish it by the same command"


@dataclass(frozen=True)
class Bundle:
    """A bundle folder.

    Attributes:
        folder: Where it lies.
        manifest: The content of ``axcore.json``.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read the manifest.

        Raises:
            BundleError: `folder` is no bundle, an unfinished one, or of a later axcore.
        """
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(
                f"{folder} holds no finished bundle: no {MANIFEST}", hint=_HINT
            ) from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {error}", hint=_HINT) from error
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        if schema != SCHEMA:
            raise BundleError(
                f"{path} has schema {schema}; this axcore reads {SCHEMA}",
                hint="convert again, or use the axcore that wrote it",
            )
        if missing := sorted(_FIELDS - manifest.keys()):
            raise BundleError(f"{path} lacks {', '.join(missing)}", hint=_HINT)
        return cls(folder, manifest)

    def __repr__(self) -> str:
        return f"<Bundle {self.manifest['model']['id']} in {self.folder}>"

    @property
    def files(self) -> dict[str, Path]:
        """Every file of the bundle, by name."""
        return {name: self.folder / name for name in self.manifest["files"]}

    @property
    def graphs(self) -> list[Path]:
        """The ONNX files, in the order data flows."""
        return [self.folder / f"{graph.stem}.onnx" for graph in self.build_request.graphs]

    @property
    def build_request(self) -> BuildRequest:
        """What a toolchain is told of this bundle."""
        return self._read("build", BuildRequest)

    @property
    def options(self) -> Options:
        """What the user chose."""
        return self._read("options", Options)

    def _read(self, field: str, kind: type[T]) -> T:
        try:
            return parse(kind, self.manifest[field])
        except ValueError as error:
            raise BundleError(f"{self.folder / MANIFEST}: {field}.{error}", hint=_HINT) from error

    def check_files(self, names: set[str] | None = None) -> None:
        """Compare size and content of files (all, unless `names` are given) with the manifest.

        Raises:
            BundleError: Files are missing or were changed; names them.
        """
        checksums = Checksums(self.folder / CHECKSUMS)
        listed = [name for name in self.manifest["files"] if names is None or name in names]
        wrong = [reason for name in listed if (reason := self._difference(name, checksums))]
        checksums.save()
        if wrong:
            raise BundleError(
                f"{self.folder} is not as it was written\n  " + "\n  ".join(wrong[:10]),
                hint="package the bundle again, or copy the whole folder again"
                if PACKAGED in self.manifest
                else "run the same `axcore convert` again; what is whole is kept",
            )

    def _difference(self, name: str, checksums: Checksums) -> str:
        """Say how a file differs from the manifest."""
        path, entry = self.folder / name, self.manifest["files"][name]
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["size"]:
            return f"{name} has {size} bytes, not {entry['size']}"
        same = checksums.of(path).sha256 == entry["sha256"]
        return "" if same else f"{name} has another content"
