"""The bill of materials, held against the standard's own schema."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from axcore.files import Content, sha256
from axcore.packaging import RUNTIMES, Runtime
from axcore.packaging.sbom import SBOM, Library, sbom
from axcore.packaging.source import Source

from . import toys
from .toys import packaged

if TYPE_CHECKING:
    from pathlib import Path


def checked(text: str) -> dict[str, Any]:
    """Return a document after the standard's schema has been satisfied."""
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert problem is None, str(problem)[:300]  # the whole schema follows
    content: dict[str, Any] = json.loads(text)
    return content


def by_type(content: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in content["components"] if item["type"] == kind}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_bill_lists_all_that_is_there(bundle: Path, runtime: Runtime) -> None:
    """Every file but itself and the manifest, which lists it; the same for the same folder.

    Oracle: the schema of CycloneDX 1.6 as its Python library has it, the folder, and hashlib.
    """
    out = packaged(bundle, runtime)
    text = (out / SBOM).read_text()
    content = checked(text)
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert SBOM in json.loads((out / "axcore.json").read_text())["files"]
    listed = {name: item["hashes"][0]["content"] for name, item in by_type(content, "file").items()}
    assert listed == {
        name: sha256(path) for name, path in files.items() if name not in (SBOM, "axcore.json")
    }
    (model,) = by_type(content, "machine-learning-model").values()
    assert (model["name"], model["purl"]) == (toys.MODEL, "pkg:huggingface/somebody/Board-Toy")
    assert content["metadata"]["component"]["name"] == f"{toys.MODEL}-{runtime}"
    again = packaged(bundle, runtime, bundle.parent / "again")
    assert (again / SBOM).read_text() == text


def test_libraries_have_version_licence_and_address(bundle: Path) -> None:
    """A folder for axllm has none. Oracle: the metadata of what is installed."""
    libraries = by_type(checked((packaged(bundle, "python") / SBOM).read_text()), "library")
    assert set(libraries) == {"axcore", "boardtoy", "pluggy"}
    assert libraries["pluggy"]["purl"] == f"pkg:pypi/pluggy@{version('pluggy')}"
    assert libraries["pluggy"]["licenses"] == [{"expression": "MIT"}]
    assert libraries["axcore"]["licenses"] == [{"expression": "Apache-2.0"}]
    other = packaged(bundle, "axllm", bundle.parent / "other")
    assert by_type(checked((other / SBOM).read_text()), "library") == {}


def test_what_was_sent_breaks_no_bill(bundle: Path) -> None:
    """Names with spaces, quotes and escapes; licences in words. Oracle: the schema."""
    source = Source.open(bundle, toys.registry())
    job = source.deployment.job
    card = replace(job.card, licence="of our own\x1b, see LICENCE", repo="a b/ö'\"?#")
    sent = replace(source, deployment=replace(source.deployment, job=replace(job, card=card)))
    files = {"a b/\x1b[2J\ud800.bin": Content(1, "0" * 64)}
    libraries = [Library("A_b.-c", "", ""), Library("d", "1+local", "BSD-3-Clause or mit")]
    content = checked(sbom(sent, "python", libraries, files))
    assert by_type(content, "library")["A_b.-c"]["purl"] == "pkg:pypi/a-b-c"
    assert by_type(content, "library")["d"]["purl"] == "pkg:pypi/d@1%2Blocal"
    (model,) = by_type(content, "machine-learning-model").values()
    assert model["licenses"] == [{"license": {"name": card.licence}}]
    assert model["purl"] == "pkg:huggingface/a%20b/%C3%B6%27%22%3F%23"
