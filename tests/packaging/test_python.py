"""The folder for Python on a board, used as there: nothing but what its README asks for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pytest

from axcore import BundleError, Registry, UnsupportedModel
from axcore.language.layer_types import other_layers
from axcore.packaging import package
from axcore.packaging.python import NEEDED
from axcore.plain import plain
from axcore.progress import Silent

from . import toys

if TYPE_CHECKING:
    from pathlib import Path

INSTALLED = [entry for entry in entry_points(group="axcore") if Registry([entry]).entries]

BOARD = """
import sys

HERE, ALLOWED = {here!r}, {allowed!r}


class Board:
    '''Finds no module that a board does not have.'''

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ALLOWED:
            raise ModuleNotFoundError(f"no module {{top}} on this board")


for name in [name for name in sys.modules if name.startswith("axcore")]:
    del sys.modules[name]
sys.meta_path.insert(0, Board())
sys.path.insert(0, HERE + "/lib")
"""


def board(folder: Path, code: str, *more: str) -> str:
    """Run code in the folder with the modules of a board alone; return what it prints."""
    own = {path.stem for path in (folder / "lib").iterdir()}
    allowed = {*own, *NEEDED, "PIL", *more}
    start = BOARD.format(here=str(folder), allowed=sorted(allowed))
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        capture_output=True, text=True, check=False, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def packaged(bundle: Path) -> Path:
    return toys.packaged(bundle, "python")


def test_the_folder_holds_what_running_takes(bundle: Path) -> None:
    """Models, embedding, the checkpoint's small files, sources; not the bundle's other files."""
    out = packaged(bundle)
    top = {path.name for path in out.iterdir()}
    small = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    made = {"axcore.json", "lib", "run.py", "README.md", "sbom.cdx.json"}
    assert top == {*toys.built(".axmodel"), toys.EMBEDDING, *small, *made}
    package_ = out / "lib" / toys.MODULE
    assert {path.name for path in package_.iterdir()} == {"__init__.py", "data"}
    assert not list(out.rglob("*.pyc"))
    assert list(out.glob("lib/pluggy-*.dist-info/**/LICENSE"))


def test_onnx_models_stand_in_where_nothing_was_compiled(onnx_bundle: Path) -> None:
    """Models and weights of both sides; the README says which they are."""
    out = packaged(onnx_bundle)
    vision = {f"{toys.STEM}.onnx", f"{toys.STEM}.onnx.data"}
    found = {path.name for path in out.iterdir() if ".onnx" in path.name}
    assert found == {*toys.built(".onnx"), *vision}
    assert "The models are .onnx files" in (out / "README.md").read_text()


def test_help_needs_nothing_but_python(bundle: Path) -> None:
    """``run.py --help`` runs on a bare Python and knows the engine that fits the models."""
    out = packaged(bundle)
    code = "sys.argv = ['run.py', '--help']\nimport runpy\n"
    code += f"runpy.run_path({str(out / 'run.py')!r}, run_name='__main__')"
    text = board(out, code)
    for option in ("--image", "--prompt", "--max-new-tokens", "--temperature", "--backend"):
        assert option in text
    assert "default here: axengine" in " ".join(text.split())


def test_the_readme_names_command_and_limits(bundle: Path) -> None:
    """Oracle: the lengths of the toy bundle; histories of 8 and 16 and a chunk of 8."""
    text = (packaged(bundle) / "README.md").read_text()
    assert "python run.py --image photo.jpg --prompt" in text
    assert "up to 24 tokens, prompt and answer together up to 32" in text
    assert all(name in text for name in NEEDED)


def test_the_readme_asks_as_the_task_is(bundle: Path) -> None:
    """A bundle for video is asked about frames."""
    toys.change_manifest(bundle, model={"task": "video"})
    text = (packaged(bundle) / "README.md").read_text()
    assert "python run.py --video frames/ --prompt" in text
    assert "--image" not in text


# What the loop cannot run ------------------------------------------------------------------------

FULL, LINEAR = "full_attention", "linear_attention"


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, ""),
        ({"num_hidden_layers": 4}, ""),
        ({"num_hidden_layers": 4, "layer_types": [FULL] * 4}, ""),
        ({"num_hidden_layers": 4, "layer_types": None, "full_attention_interval": 1}, ""),
        (
            {"layer_types": [LINEAR, LINEAR, "mamba", FULL]},
            "2 of 4 layers of the type linear_attention, 1 of 4 layers of the type mamba",
        ),
        (
            {"num_hidden_layers": 9, "full_attention_interval": 4},
            "7 of 9 layers of the type linear_attention",
        ),
    ],
)
def test_layers_are_told_by_the_config(config: dict[str, Any], found: str) -> None:
    """Listed, or every so many of them attends fully. Oracle: counted by hand."""
    assert other_layers(config) == found


def hybrid(folder: Path, suffix: str) -> Path:
    bundle = toys.write_bundle(folder / "bundle", suffix)
    text = {"layer_types": [LINEAR, LINEAR, FULL]}
    toys.change_config(bundle, architectures=["BoardToy"], text_config=text)
    return bundle


def test_compiled_layers_that_keep_another_state_are_refused(family: Path, tmp_path: Path) -> None:
    """They do not say what they keep; both ways on are named, and no folder appears."""
    del family
    bundle = hybrid(tmp_path, ".axmodel")
    with pytest.raises(UnsupportedModel, match="2 of 3 layers of the type linear") as caught:
        packaged(bundle)
    assert "--toolchain onnx" in caught.value.hint
    assert "--runtime axllm" in caught.value.hint
    assert not (tmp_path / "board").exists()


def test_layers_that_say_what_they_keep_are_packaged(family: Path, tmp_path: Path) -> None:
    """Oracle: the names of the files of a build with the embedded toolchain."""
    del family
    bundle = hybrid(tmp_path, ".onnx")
    made = packaged(bundle)
    assert {*toys.built(".onnx")} <= {path.name for path in made.iterdir()}
    for name in toys.built(".onnx"):
        (bundle / name).unlink()
    with pytest.raises(BundleError, match="no layer models") as caught:
        toys.packaged(bundle, "python", tmp_path / "other")
    assert "--toolchain onnx" in caught.value.hint


def test_which_of_the_known_models_have_such_layers() -> None:
    """Oracle: what is published of them: every fourth layer attends fully, or six of 16."""
    found = {}
    for entry in Registry().entries:
        config = entry.card.published.config
        text = config.get("text_config") or config.get("llm_config") or config
        found[entry.card.id] = other_layers(text)
    assert found["internvl3.5-1b"] == found["qwen2.5-vl-3b"] == ""
    assert found["minicpm-v-4.6"] == "18 of 24 layers of the type linear_attention"
    assert found.get("lfm2-vl-450m") in (None, "10 of 16 layers of the type conv")


IMPORTS = """
import axcore, axcore.runtime.deployment, axcore.runtime.sampling, axcore.runtime.text
from axcore.runtime.text import TextStream
from pathlib import Path

assert axcore.__file__.startswith(HERE)
registry = axcore.Registry()
deployment = axcore.runtime.deployment.Deployment.open(Path(HERE), registry)
module = sys.modules[registry.plugins[deployment.job.family].module]
assert module.__file__.startswith(HERE), module.__file__
print(deployment.job.card.id)
"""


@pytest.mark.parametrize("entry", INSTALLED, ids=lambda entry: str(entry.name))
def test_every_installed_family_loads_on_a_board(
    bundle: Path, tmp_path: Path, entry: EntryPoint
) -> None:
    """Its cards are there with no module but those a board has."""
    registry = Registry([entry])
    card = registry.entries[0].card
    build = plain(toys.request(model=card.id))
    toys.change_manifest(bundle, model={"id": card.id}, build=build)
    out = package(bundle, tmp_path / "board", "python", registry, Silent())
    assert board(out, IMPORTS) == f"{card.id}\n"
