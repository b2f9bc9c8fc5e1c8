"""The tutorial for plugin authors, done as it stands: its commands, and the code that it shows."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import axcore
from axcore import hookspecs
from axcore.authoring.package import EXAMPLE
from axcore.calibration import embedded_images

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ") for kind, text in BLOCKS if kind == "console"
    for line in text.splitlines() if line.startswith("$ ")
]  # fmt: skip
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
SHOWN = re.compile(r"# ([\w/]+\.(?:py|toml))\n")

# What an author has: a Python that finds what is installed here, and installs into its own place.
PIP = """#!/bin/sh
exec {python} -m pip --python {own} "$@" --quiet --no-deps --no-build-isolation --no-index \
  --disable-pip-version-check
"""
AXCORE = """#!/bin/sh
exec {own} -m axcore "$@"
"""


class Done:
    """The tutorial's commands and what they printed, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}

    @property
    def package(self) -> Path:
        return self.folder / "axcore_plugins_foovl"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Every command, in order, in a fresh environment; each must succeed."""
    folder = tmp_path_factory.mktemp("tutorial")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    own = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    seen = sysconfig.get_path("purelib")
    (packages / "seen.pth").write_text(f"import site; site.addsitedir({seen!r})\n")
    for name, text in (("pip", PIP), ("axcore", AXCORE)):
        script = own.with_name(name)
        script.write_text(text.format(python=sys.executable, own=own))
        script.chmod(0o755)
    shutil.copy(embedded_images()[0], folder / "photo.jpg")
    environment = {
        **os.environ,
        "AXCORE_CACHE": str(folder / "cache"),
        "PATH": f"{own.parent}{os.pathsep}{os.environ['PATH']}",
    }
    made = Done(folder)
    for command in COMMANDS:
        ran = subprocess.run(
            ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        made.said[command] = ran.stdout
    return made


def said(done: Done, part: str) -> str:
    (found,) = [text for command, text in done.said.items() if part in command]
    return found


def test_it_begins_with_a_package_and_ends_with_an_answer(done: Done) -> None:
    """Oracle: the page's own order; the answer is text, and the verdict says what is proven."""
    assert COMMANDS[0].startswith("axcore plugins new")
    assert said(done, "axcore run").strip()
    verdict = said(done, "axcore plugins check")
    assert "keeps the contract" in verdict
    assert "answers equal the model's own class" in verdict
    assert "failed" not in verdict


def test_what_it_shows_is_what_is_written(done: Done) -> None:
    """Code under the name of a file is in that file, to the letter. Oracle: the package."""
    named = [(found[1], text[found.end() :]) for text in PYTHON if (found := SHOWN.match(text))]
    assert {name for name, _ in named} == {"__init__.py", "vision.py", "tests/test_foovl.py"}
    for name, text in named:
        assert text in (done.package / name).read_text(), f"{name} has not\n{text}"


def test_what_is_derived_is_right(done: Done) -> None:
    """Oracle: CLIP and llava as they are known, and the example's config."""
    text = (done.package / "__init__.py").read_text()
    own: dict[str, Any] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.Tuple)):
            own[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    assert own["ROWS"] == 14 * 14
    assert own["SIDE"] == 224
    assert own["MEAN"] == (122.7709, 116.746, 104.0937)
    assert own["TEXT_PREFIXES"] == ("model.language_model.", "lm_head.")
    assert own["AXCORE_CONTRACT"] == hookspecs.CONTRACT
    assert '"model.vision_tower.encoder.layers.11."' in text  # llava takes the last but one
    published = done.package / "data" / own["MODEL"] / "config.json"
    assert json.loads(published.read_text()) == json.loads(EXAMPLE.read_text())


@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_every_piece_of_code_is_whole(text: str) -> None:
    """It parses, and what it imports of axcore is there. Oracle: Python."""
    source = SHOWN.sub("", text, count=1)
    if source.startswith("    "):
        source = f"def shown():\n{source}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "axcore":
            module = __import__(str(node.module), fromlist=["*"])
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "axcore":
            assert hasattr(axcore, node.attr), node.attr
