"""What holds for the repository as a whole."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import axcore

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("axcore_plugins_*/pyproject.toml"))]
DISTRIBUTIONS = [*PROJECTS, *sorted(ROOT.glob("plugins/*/pyproject.toml"))]
MODULES = [path.parent.name for path in PROJECTS[1:]]
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "onnx_ir", "onnxslim", "pydantic"}
# Written so that this file does not match.
ELSEWHERE = re.compile(r"\.\./share[d]|(?<![\w.~-])/(wor[k]|tmp/[w]|roo[t]|hom[e]|User[s])/\w")
FAMILIES = re.compile("qwen|minicpm|internvl|siglip", re.IGNORECASE)


def read(path: Path) -> dict[str, Any]:
    """Return a TOML file as data."""
    content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return content


def requirements(*, extras: bool) -> Iterator[Requirement]:
    """Yield what the distributions here need from elsewhere."""
    for path in PROJECTS:
        project = read(path)["project"]
        optional = project.get("optional-dependencies", {})
        wanted = optional if extras else {"dev": optional.get("dev", [])}
        for text in [
            *project["dependencies"],
            *(text for list_ in wanted.values() for text in list_),
        ]:
            if (requirement := Requirement(text)).name != "axcore":
                yield requirement


def pinned(python: str) -> dict[str, str]:
    """Return the version of every package that ``constraints.txt`` gives a Python version."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                assert pin.name not in pins, f"{pin.name} is pinned twice for Python {python}"
                pins[pin.name] = str(pin.specifier).removeprefix("==")
    return pins


def test_contracts_of_imports_cover_every_package() -> None:
    """Core, families and further plugins. Oracle: the distributions in the repository."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    covered = contracts["importlinter"]["root_packages"].split()
    assert covered == ["axcore", *sorted(path.parent.name for path in DISTRIBUTIONS[1:])]


def test_no_file_points_outside_the_repository() -> None:
    """A checkout stands alone: no path of a machine it was written on. Oracle: the list above."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a git checkout")
    for name in listing.stdout.splitlines():
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content and not name.startswith("tests/fuzz/corpus/"):
            found = ELSEWHERE.search(content.decode("utf-8"))
            assert found is None, f"{name} mentions {found[0]}"


def test_the_core_names_no_family() -> None:
    """A model is never special to the core. Oracle: the names of the families we know of."""
    core = ROOT / "axcore"
    # Published tables, and the architectures of transformers that the default decoder computes.
    listed = {"operators.json", "architectures.json"}
    data = [path for path in core.rglob("*.json") if path.name not in listed]
    # What a new package is derived from, as somebody would have published it.
    data = [path for path in data if path.parent != core / "data" / "plugin" / "example"]
    for path in [*core.rglob("*.py"), *data]:
        found = FAMILIES.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)} mentions {found[0]}"


def test_the_version_is_one_and_has_its_section_in_the_changelog() -> None:
    """Code, metadata and changelog agree. Oracle: ``pyproject.toml``."""
    version = read(ROOT / "pyproject.toml")["project"]["version"]
    assert axcore.__version__ == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_a_family_accepts_this_core(project: Path) -> None:
    """The distributions of one checkout install together. Oracle: packaging."""
    for text in read(project)["project"]["dependencies"]:
        if (requirement := Requirement(text)).name == "axcore":
            assert requirement.specifier.contains(axcore.__version__)


BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools puts arguments of its own in their place
print(build_meta.build_wheel(out), build_meta.build_sdist(out))
"""


@pytest.mark.parametrize("project", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_distributions_are_complete(project: Path, tmp_path: Path) -> None:
    """Wheel and source distribution have every module, all data and the licence, and no test.

    Oracle: the files that the project's folder has, and those in the archives.
    """
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__")
    shutil.copytree(project.parent, source, ignore=ignored)
    name = read(project)["project"]["name"].replace("-", "_")
    package = source / name if (source / name).is_dir() else source
    found = [
        *package.rglob("*.py"),
        *(path for path in package.rglob("data/**/*") if path.is_file()),
    ]
    modules = {path.relative_to(package) for path in found}
    modules = {path for path in modules if "tests" not in path.parts}
    command = [sys.executable, "-c", BUILD, tmp_path]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wheel, sdist = (tmp_path / name for name in done.stdout.splitlines()[-1].split())
    with zipfile.ZipFile(wheel) as archive:
        built = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in built if name.endswith("METADATA"))
        (licence,) = (archive.read(name) for name in built if name.endswith("/LICENSE"))
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {f"{name}/{path}" for path in modules} <= built
    assert {str((package / path).relative_to(source)) for path in modules} <= packed
    assert {"LICENSE", "README.md", "pyproject.toml"} <= packed
    assert not [path for path in built | packed if "tests" in Path(path).parts]
    assert licence == (ROOT / "LICENSE").read_bytes()
    for line in ("Project-URL: ", "Classifier: Operating System :: POSIX :: Linux"):
        assert f"\n{line}" in metadata


def test_every_dependency_has_a_lower_bound() -> None:
    """An old installation is upgraded rather than met with an error. Oracle: packaging."""
    for requirement in requirements(extras=True):
        operators = {part.operator for part in requirement.specifier}
        assert operators & {">=", "==", "~="}, f"{requirement} has no lower bound"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_tested_set_satisfies_every_dependency(python: str) -> None:
    """Installing with the constraints gives one version of each dependency, a fitting one.

    Oracle: packaging.
    """
    pins = pinned(python)
    for requirement in requirements(extras=False):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            version = pins.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is not pinned"
            assert requirement.specifier.contains(version), f"{requirement} against {version}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_what_is_installed_has_hashes_and_the_tested_versions(python: str) -> None:
    """What `make` installs is the tested set, each package with hashes. Oracle: the constraints."""
    locked = {}
    for name in ("dev", "fuzz", "torch", "torch-cpu"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        for entry in re.findall(r"^[a-z0-9].*(?:\n    .*)*", text, re.MULTILINE):
            requirement = Requirement(entry.partition("\\")[0])
            assert re.search(r" --hash=sha256:[0-9a-f]{64}$", entry), requirement.name
            where = {"python_version": python, "python_full_version": f"{python}.0"}
            if requirement.name != "torch" and name.startswith("torch"):
                continue  # the libraries of CUDA are those that torch names
            if requirement.marker is None or requirement.marker.evaluate(where):
                version = str(requirement.specifier).removeprefix("==").removesuffix("+cpu")
                assert locked.setdefault(requirement.name, version) == version
    pins = pinned(python)
    assert {name: pins.get(name) for name in locked} == locked
    wanted = {canonicalize_name(requirement.name) for requirement in requirements(extras=False)}
    assert wanted <= locked.keys()


@pytest.mark.parametrize("module", ["axcore.cli", *MODULES])
def test_what_is_imported_to_start_is_light(module: str) -> None:
    """Discovery and the command line import nothing heavy. Oracle: `sys.modules`."""
    assert loaded_by(f"import {module}") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        "--help", "convert --help", "run --help", "chat --help", "package --help",
        "list-models", "show qwen2.5-vl-3b", "plugins list",
    ],
)  # fmt: skip
def test_asking_what_there_is_is_light(arguments: str) -> None:
    """Commands that only answer import nothing heavy either. Oracle: as above."""
    code = f"sys.argv = ['axcore', *{arguments.split()!r}]\nfrom axcore.cli import main\nmain()\n"
    assert loaded_by(code) <= {"pydantic"}  # which typer brings while it builds a command


def loaded_by(code: str) -> set[str]:
    """Return what is heavy of the modules that a fresh interpreter has imported after `code`."""
    report = f"atexit.register(lambda: print(*{HEAVY!r} & sys.modules.keys(), file=sys.stderr))"
    command = [sys.executable, "-c", f"import atexit, sys\n{report}\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())
