"""`axcore plugins check`: every law is tried and reported, whatever came of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import jsonschema
import pytest

from axcore import PluginNotFound, UsageError
from axcore.authoring.judge import check_plugin
from axcore.testing.kit import LAWS

from ..bundles import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = """
[project]
name = "axcore-plugins-bareboned"
[project.entry-points.axcore]
bareboned = "axcore_plugins_bareboned"
"""
# A family that declares a model and nothing that could be converted.
HOOKS = """
from axcore import ModelCard, Profile, hookimpl

print("hello")


@hookimpl
def model_cards():
    return [ModelCard("bare", "a/b", ("BareModel",), {"image": Profile(8, 8, 16, 31)})]
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that is not installed."""
    folder = tmp_path / "axcore_plugins_bareboned"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "__init__.py").write_text(HOOKS)
    return folder


def test_every_law_is_reported(package: Path, tmp_path: Path) -> None:
    """By its name, with the reason; the exit code is 1. Oracles: the laws, the schema."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "axcore", "plugins", "check", package, "-o", out, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    jsonschema.validate(found, {**SCHEMA, "$ref": "#/$defs/plugins check"})
    assert [law["law"] for law in found["laws"]] == [law.name for law in LAWS]
    told = {law["law"]: law for law in found["laws"]}
    assert told["every field of a card has its declared type"]["status"] == "passed"
    quiet = told["discovery is quiet and imports nothing heavy"]
    assert quiet["status"] == "failed"
    assert "'hello'" in quiet["reason"]
    described = told["components, keys, tensors and cuts agree"]
    assert "does not list its tensors" in described["reason"]
    later = told["answers equal those of the model's own class"]
    assert later["status"] == "not applicable"
    assert later["reason"].startswith("not tried, because of: ")
    assert found["hooks"] == ["model_cards"]
    assert "prepare_prompt" in found["defaulted"]
    assert "toolchains" not in found["defaulted"]
    assert found["verdict"] == f"2 of {len(LAWS)} laws are broken"
    assert not found["passed"]


def test_what_is_no_plugin_is_refused(tmp_path: Path) -> None:
    """A name that nobody has, a folder without one. Oracle: the messages."""
    with pytest.raises(PluginNotFound, match="no plugin `nobody` is installed"):
        check_plugin("nobody", tmp_path)
    with pytest.raises(UsageError, match="holds no plugin"):
        check_plugin(str(tmp_path), tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 7\n")
    with pytest.raises(UsageError, match="declares no plugin"):
        check_plugin(str(tmp_path), tmp_path)
