"""A family that nobody here wrote: installed as a package, converted with, and held to the laws."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from axcore import ContractError, Registry
from axcore.testing import check_family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(__file__).parent / "third_party" / "axcore_plugins_toyvlm"


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the third-party family, and a folder for its results."""

    python: Path
    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its interpreter outside the repository."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env={**os.environ, "AXCORE_CACHE": str(self.folder / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def axcore(self, *arguments: str) -> Any:
        """Run the command line and return what it prints as JSON."""
        done = self.run("-m", "axcore", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh environment that sees the packages of this one, and a copy installed into it."""
    folder = tmp_path_factory.mktemp("environment")
    venv, copy = folder / "venv", folder / PACKAGE.name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (packages,) = (venv / "lib").glob("python*/site-packages")
    # addsitedir, because editable installs are .pth files themselves.
    seen = sysconfig.get_path("purelib")
    (packages / "seen.pth").write_text(f"import site; site.addsitedir({seen!r})\n")
    shutil.copytree(PACKAGE, copy)
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*install, "--no-build-isolation", "--no-index", "--disable-pip-version-check", copy],
        check=True,
    )
    shutil.rmtree(copy)
    return Environment(python, folder)


def test_the_package_is_found(environment: Environment) -> None:
    """Listed with distribution, version and hooks, its model beside the others'.

    Oracle: the package's own pyproject and hooks.
    """
    listed = {entry["name"]: entry for entry in environment.axcore("plugins", "list")}
    assert listed["toyvlm"] == {
        "name": "toyvlm",
        "distribution": "axcore-plugins-toyvlm",
        "version": "0.3.1",
        "status": "ok",
        "contract": 1,
        "hooks": ["model_cards", "export_vision"],
    }
    assert "toy-vlm" in {model["id"] for model in environment.axcore("list-models")}


def test_a_model_is_converted_with_it(environment: Environment) -> None:
    """From a fabricated checkpoint to a bundle. Oracle: the manifest, and PyTorch."""
    out = environment.folder / "bundle"
    environment.axcore("convert", "toy-vlm", "-o", str(out), "--weights", "random-tiny")
    manifest = json.loads((out / "axcore.json").read_text())
    assert manifest["model"]["family"] == "toyvlm"
    assert manifest["model"]["plugin"] == "axcore-plugins-toyvlm 0.3.1"
    (component,) = manifest["components"]
    assert component["findings"] == []
    assert component["verification"]["max_abs"] < 1e-4
    assert {"Toy-VLM_vision.onnx", "Toy-VLM_vision.onnx.data", "build.sh"} <= manifest[
        "files"
    ].keys()


def test_it_keeps_the_laws(environment: Environment) -> None:
    """The conformance kit, as its author would call it. Oracle: the kit."""
    code = (
        "import pathlib; from axcore.testing import check_family\n"
        "check_family('toyvlm', out=pathlib.Path('kit'))"
    )
    done = environment.run("-c", code)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (environment.folder / "kit" / "image").iterdir()}
    assert names == {"whole", "parts"}


# The kit finds what is wrong ---------------------------------------------------------------------

HEAD = """
import torch
from dataclasses import replace
import axcore_plugins_toyvlm as toyvlm
from axcore import hookimpl
from axcore_plugins_toyvlm import model_cards
"""
PATCHING = """
from axcore_plugins_toyvlm import export_vision


@hookimpl
def patch_attention(stage):
    return patched(stage) if stage.name == "projector" else None


"""
WRONG = {
    "patching changes the result": (
        f"""{PATCHING}
def patched(stage):
    return replace(stage, module=torch.nn.Sequential(*stage.module, torch.nn.ReLU()))
""",
        "task `image`, stage `projector`: the patched stage computes something else",
    ),
    "patching twice changes more": (
        f"""{PATCHING}
class Scaled(torch.nn.Identity):
    def forward(self, x):
        return x * self.factor


def patched(stage):
    scaled = Scaled()
    scaled.factor = 2.0 if isinstance(stage.module[-1], Scaled) else 1.0
    return replace(stage, module=torch.nn.Sequential(*stage.module, scaled))
""",
        "task `image`, stage `projector`: patching twice differs from patching once",
    ),
    "an operator is not listed": (
        """
class Signed(torch.nn.Sequential):
    def forward(self, x):
        return torch.sign(super().forward(x)) + 0.5


@hookimpl
def export_vision(job):
    (component,) = toyvlm.export_vision(job)
    *stages, last = component.stages
    signed = replace(last, module=Signed(*last.module))
    return [replace(component, stages=(*stages, signed))]
""",
        "Sign",
    ),
    "something is written elsewhere": (
        """
from axcore_plugins_toyvlm import export_vision


@hookimpl
def make_calib(job, component, images):
    (job.checkpoint.folder / "notes.txt").write_text("x")
    return iter(component.preprocess(images))
""",
        "written outside the bundle: .*notes.txt",
    ),
}


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Registry]]:
    """Return a function that writes a variant of the family and loads it."""
    monkeypatch.syspath_prepend(PACKAGE.parent)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(source: str) -> Registry:
        (tmp_path / "toyvlm_gone_wrong.py").write_text(HEAD + source)
        return Registry([EntryPoint("wrong", "toyvlm_gone_wrong", "axcore")])

    yield load
    for name in ("toyvlm_gone_wrong", "axcore_plugins_toyvlm", "axcore_plugins_toyvlm.vision"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("fault", WRONG)
def test_the_kit_finds_a_broken_law(
    wrong: Callable[[str], Registry], tmp_path: Path, fault: str
) -> None:
    """A family that breaks one law fails by its name. Oracle: the law that was broken."""
    source, message = WRONG[fault]
    with pytest.raises(AssertionError, match=message):
        check_family("wrong", out=tmp_path / "kit", registry=wrong(source))


def test_the_kit_says_why_a_plugin_was_set_aside(
    wrong: Callable[[str], Registry], tmp_path: Path
) -> None:
    """A family that did not load, or that has no such model. Oracle: the fault written."""
    registry = wrong("raise RuntimeError('no luck')")
    with pytest.raises(ContractError, match=r"`wrong` was set aside: RuntimeError: no luck"):
        check_family("wrong", out=tmp_path, registry=registry)
    with pytest.raises(ContractError, match="family `other` has no model"):
        check_family("other", out=tmp_path, registry=registry)
