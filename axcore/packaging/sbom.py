"""The bill of materials of a packaged folder: CycloneDX 1.6 as JSON.

Written by hand: the library that models the whole standard brings six packages for these lines. A
test holds the result against the standard's schema. It has no time, and its serial number follows
from its content, so that the same folder has the same bill.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..hookspecs import PROJECT
from ..versions import version_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..files import Content
    from .source import Source

SBOM = "sbom.cdx.json"
_FOLDER, _MODEL = "folder", "model"  # references inside the document


@dataclass(frozen=True)
class Library:
    """A Python distribution, as its installation describes it.

    Attributes:
        name, version: Of the distribution.
        licence: An SPDX expression, or in other words; empty where it says nothing.
    """

    name: str
    version: str
    licence: str = ""

    @classmethod
    def of(cls, name: str, version: str = "") -> Library:
        """Look it up; one that is not installed has only what is given."""
        try:
            found = metadata(name)
        except PackageNotFoundError:
            return cls(name, version)
        said = [found[field] for field in ("License-Expression", "License") if field in found]
        licence = said[0].partition("\n")[0] if said else ""
        return cls(name, version or found["Version"], licence)


def sbom(
    source: Source, runtime: str, libraries: Iterable[Library], files: Mapping[str, Content]
) -> str:
    """Return the document.

    Args:
        source: The bundle that was packaged.
        runtime: For which.
        libraries: The Python distributions in the folder.
        files: Its files, by name.
    """
    parts = [_model(source), *map(_library, libraries)]
    listed = [_file(name, content) for name, content in sorted(files.items())]
    folder = {
        "type": "application",
        "bom-ref": _FOLDER,
        "name": f"{source.card.id}-{runtime}",
        "description": f"{source.card.repo}, packaged by axcore for {source.deployment.job.target}",
    }
    tool = {"type": "application", "name": PROJECT, "version": version_of(PROJECT)}
    content = {
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": folder},
        "components": [*parts, *listed],
        "dependencies": [{"ref": _FOLDER, "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}"}
    return json.dumps({**head, **content}, indent=2) + "\n"


def _model(source: Source) -> dict[str, Any]:
    card, job = source.card, source.deployment.job
    properties = {
        "axcore:family": job.family,
        "axcore:task": job.task,
        "axcore:target": job.target,
        "axcore:weights-fingerprint": source.deployment.weights,
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": card.id,
        **_licences(card.licence),
        "purl": f"pkg:huggingface/{quote(card.repo)}",
        "externalReferences": [
            {"type": "distribution", "url": f"https://huggingface.co/{quote(card.repo)}"}
        ],
        "properties": [
            {"name": name, "value": value} for name, value in properties.items() if value
        ],
    }


def _library(library: Library) -> dict[str, Any]:
    # As package URLs spell names of PyPI: the index takes them all for one.
    name = re.sub(r"[-_.]+", "-", library.name).lower()
    purl = f"pkg:pypi/{name}" + (f"@{quote(library.version)}" if library.version else "")
    return {
        "type": "library",
        "bom-ref": purl,
        "name": library.name,
        **({"version": library.version} if library.version else {}),
        **_licences(library.licence),
        "purl": purl,
    }


def _file(name: str, content: Content) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": content.sha256}],
    }


def _licences(licence: str) -> dict[str, Any]:
    """Return a licence as the standard has it: an SPDX expression, or else a name."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if not licence:
        return {}
    try:
        return {"licenses": [{"expression": canonicalize_license_expression(licence)}]}
    except InvalidLicenseExpression:
        return {"licenses": [{"license": {"name": licence}}]}
