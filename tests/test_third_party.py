"""A family that nobody here wrote: installed as a package, converted with, and held to the laws."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from axcore import Bundle, ContractError, Options, Registry, convert
from axcore.calibration import embedded_images
from axcore.testing import check_family, conversion
from axcore.testing.kit import LAWS
from axcore.testing.trial import NotApplicable, Trial

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
        "hooks": ["model_cards", "export_vision", "llm_build_args", "prepare_prompt"],
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


# The kit finds what is wrong ---------------------------------------------------------------------

HEAD = """
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
    import torch
    return replace(stage, module=torch.nn.Sequential(*stage.module, torch.nn.ReLU()))
""",
        "task `image`, stage `projector`: the patched stage computes something else",
    ),
    "patching twice changes more": (
        f"""{PATCHING}
def patched(stage):
    import torch

    class Scaled(torch.nn.Identity):
        def forward(self, x):
            return x * self.factor

    scaled = Scaled()
    scaled.factor = 2.0 if hasattr(stage.module[-1], "factor") else 1.0
    return replace(stage, module=torch.nn.Sequential(*stage.module, scaled))
""",
        "task `image`, stage `projector`: patching twice differs from patching once",
    ),
    "an operator is not listed": (
        """
@hookimpl
def export_vision(job):
    import torch

    class Signed(torch.nn.Sequential):
        def forward(self, x):
            return torch.sign(super().forward(x)) + 0.5

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


# The kit finds what would answer wrongly ----------------------------------------------------------

ANSWERING = """
from dataclasses import replace
import numpy as np
import axcore_plugins_toyvlm as toyvlm
from axcore import hookimpl
from axcore_plugins_toyvlm import export_vision, {names}
"""
ALL = ("model_cards", "llm_build_args", "prepare_prompt")
MUTANTS = {
    "prepare_prompt raises": (
        ("model_cards", "llm_build_args"),
        """
@hookimpl
def prepare_prompt(job, messages):
    raise ZeroDivisionError("no luck")
""",
        "ZeroDivisionError: no luck",
    ),
    "prepare_prompt is absent": (("model_cards", "llm_build_args"), "", "prepare_prompt"),
    "torch is imported for a prompt": (
        ("model_cards", "llm_build_args"),
        """
@hookimpl
def prepare_prompt(job, messages):
    import torch
    return toyvlm.prepare_prompt(job, messages)
""",
        "import of torch",
    ),
    "torch is imported at discovery": (ALL, "import torch", "torch"),
    "four places are missing": (
        ("model_cards", "llm_build_args"),
        """
@hookimpl
def prepare_prompt(job, messages):
    made = toyvlm.prepare_prompt(job, messages)
    places = made.vision_rows["vision"]
    return replace(made, vision_rows={"vision": places[:-4]})
""",
        r"one picture: places for \[32\] rows of `vision`, which runs 1 times and gives 36",
    ),
    "the marker is no token": (
        ("llm_build_args", "prepare_prompt"),
        """
@hookimpl
def model_cards():
    (card,) = toyvlm.model_cards()
    tokens = lambda config: {"<|turn|>": 510, "<|end|>": 509}
    return [replace(card, published=replace(card.published, tokens=tokens))]
""",
        "the tokenizer splits `<image>`",
    ),
    "norms are missing from the checkpoint of the language model": (
        ("model_cards", "prepare_prompt"),
        """
@hookimpl
def llm_build_args(job):
    made = toyvlm.llm_build_args(job)
    tensors = {k: v for k, v in made.checkpoint.tensors.items() if "norm" not in k}
    return replace(made, checkpoint=replace(made.checkpoint, tensors=tensors))
""",
        "transformers does not take the LlmCheckpoint as it is: missing: model.layers.0",
    ),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """The family as it should be, converted once; the variants are tried on what it wrote."""
    sys.path.insert(0, str(PACKAGE.parent))
    try:
        registry = Registry([EntryPoint("toyvlm", PACKAGE.name, "axcore")])
        trial = Trial.of("toyvlm", tmp_path_factory.mktemp("kit"), registry=registry)
        whole = trial.prepared(Options(task="image"))
        trial.keep("whole image", whole)
        bundle = convert(
            "toy-vlm", trial.out / "image", checkpoint=trial.checkpoint, verify=False,
            images=embedded_images()[:4], options=Options(task="image"), registry=registry,
        )  # fmt: skip
        trial.keep("bundles image", [bundle])
        yield trial
    finally:
        sys.path.remove(str(PACKAGE.parent))


def tried(trial: Trial) -> None:
    """Try the laws that need neither a trace nor a build; the first that is broken raises."""
    for law in LAWS:
        if law not in conversion.LAWS and not law.name.startswith(BUILT):
            with suppress(NotApplicable):
                law.check(trial)


BUILT = ("layer models", "it answers", "a second turn runs", "packaged", "answers equal")


def test_the_family_as_it_is_passes(converted: Trial) -> None:
    """The same laws find nothing in what is right. Oracle: the variants below, which fail."""
    tried(converted)


def with_file(bundle: Path, file: Path) -> None:
    """Put a file into a bundle as if it had been converted with it."""
    shutil.copy(file, bundle)
    manifest = json.loads((bundle / "axcore.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"][file.name] |= {"size": file.stat().st_size, "sha256": digest}
    (bundle / "axcore.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_kit_finds_what_would_answer_wrongly(
    converted: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    """Each of these passed before prompts were laws. Oracle: the fault that was made."""
    names, source, message = MUTANTS[mutant]
    module = f"toyvlm_mutant_{list(MUTANTS).index(mutant)}"
    (tmp_path / f"{module}.py").write_text(ANSWERING.format(names=", ".join(names)) + source)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry([EntryPoint("toyvlm", module, "axcore")])
    trial = Trial.of("toyvlm", tmp_path / "kit", registry=registry)
    whole = trial.prepared(Options(task="image"))
    trial.keep("whole image", whole)
    bundle = tmp_path / "bundle"
    shutil.copytree(converted.bundle.folder, bundle)
    with_file(bundle, trial.checkpoint / "tokenizer.json")
    trial.keep("bundles image", [Bundle.open(bundle)])
    with pytest.raises(AssertionError, match=message):
        tried(trial)


def test_the_kit_says_why_a_plugin_was_set_aside(
    wrong: Callable[[str], Registry], tmp_path: Path
) -> None:
    """A family that did not load, or that has no such model. Oracle: the fault written."""
    registry = wrong("raise RuntimeError('no luck')")
    with pytest.raises(ContractError, match=r"`wrong` was set aside: RuntimeError: no luck"):
        check_family("wrong", out=tmp_path, registry=registry)
    with pytest.raises(ContractError, match="family `other` has no model"):
        check_family("other", out=tmp_path, registry=registry)
