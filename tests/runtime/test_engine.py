"""Choosing an engine, opening models and reading their groups, with stand-ins for the board."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from axcore.errors import BundleError, ToolchainError, UsageError
from axcore.runtime import axengine_sim
from axcore.runtime.backends import EngineBackend
from axcore.runtime.engine import load_engine, open_session, shape_groups

if TYPE_CHECKING:
    from pathlib import Path

    from axcore.runtime.deployment import Deployment

    from .conftest import ToyLanguageModel

LAYER = "toy_p4_l0_together.onnx"


class PyaxengineStandin:
    """Stands in for pyaxengine's session: it checks group numbers less well than one thinks."""

    def __init__(self, count: int) -> None:
        self._nodes = [[axengine_sim.NodeArg("x", np.dtype(np.uint8), (n,))] for n in range(count)]

    def get_inputs(self, shape_group: int = 0) -> list[axengine_sim.NodeArg]:
        if shape_group > len(self._nodes):
            raise ValueError(f"Shape group '{shape_group}' is out of range")
        return self._nodes[shape_group]

    get_outputs = get_inputs

    def run(self, *feed: object) -> list[Any]:
        raise NotImplementedError


def board_standin(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Put a stand-in for `axengine` in place whose sessions fail with `error`."""

    def fail(path: str) -> None:
        raise error

    module = ModuleType("axengine")
    module.InferenceSession = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "axengine", module)


def test_engines_are_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation, which also stands in for the board's module. Oracle: the module."""
    monkeypatch.setitem(sys.modules, "axengine", axengine_sim)
    assert load_engine("onnx") is load_engine("axengine") is axengine_sim


def test_sessions_use_as_many_threads_as_are_asked_for(toy: ToyLanguageModel) -> None:
    """Oracle: the threads that the system counts; a run's own is one of them."""
    program = """
import os, sys
from pathlib import Path
from axcore.runtime.engine import load_engine, open_session
threads = lambda: len(os.listdir("/proc/self/task"))
engine = load_engine("onnx", threads=int(sys.argv[2]))
before = threads()
session = open_session(engine, Path(sys.argv[1]))
print(threads() - before)
"""
    for count in (1, 3):
        asked = [sys.executable, "-c", program, str(toy.folder / LAYER), str(count)]
        made = subprocess.run(asked, capture_output=True, text=True, check=True)
        assert int(made.stdout) == count - 1


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", "²", "99999999999"])
def test_a_number_of_threads_that_is_none_is_refused(
    toy_deployment: Deployment, given: str
) -> None:
    """By vision side and language model, with what is accepted."""
    backend = EngineBackend("onnx", ".onnx")
    for opened in (backend.vision, backend.language):
        with pytest.raises(UsageError, match=f"--threads {given}"):
            opened(toy_deployment, {"threads": given})


def test_an_unknown_engine_is_refused() -> None:
    """Oracle: the engines that there are, in the hint."""
    with pytest.raises(UsageError, match="no engine `tensorrt`") as caught:
        load_engine("tensorrt")
    assert caught.value.hint == "use onnx or axengine"


def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the board's package; it is hidden should this machine have it."""
    monkeypatch.setitem(sys.modules, "axengine", None)
    with pytest.raises(ToolchainError, match="engine `axengine` does not load") as caught:
        load_engine("axengine")
    assert "install pyaxengine" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    ["raise ImportError('No providers found.')", "raise OSError('libax_engine.so: wrong ELF')"],
)
def test_a_board_without_its_library_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """A stand-in package that fails as pyaxengine does when it finds no library."""
    (tmp_path / "axengine.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "axengine", raising=False)
    with pytest.raises(ToolchainError, match=r"No providers found|wrong ELF") as caught:
        load_engine("axengine")
    assert "libax_engine.so" in caught.value.hint


@pytest.mark.parametrize("kind", [ImportError, OSError, AssertionError])
def test_a_library_that_fails_with_the_first_model_is_explained(
    toy: ToyLanguageModel, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Pyaxengine loads its library late; the stand-in raises what it raises then."""
    board_standin(monkeypatch, kind("Failed to find library ax_sys."))
    with pytest.raises(ToolchainError, match=r"Failed to find library ax_sys\."):
        open_session(load_engine("axengine"), toy.folder / LAYER)


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to load model."), ValueError("cannot mmap an empty file")]
)
def test_a_model_of_another_target_is_named(
    toy: ToyLanguageModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The stand-in raises what pyaxengine raises for files it cannot run."""
    board_standin(monkeypatch, error)
    with pytest.raises(BundleError, match=f"`{LAYER}` is not a model.*(?s:.*){error}") as caught:
        open_session(load_engine("axengine"), toy.folder / LAYER)
    assert caught.value.hint


def test_files_that_are_missing_or_foreign_are_named(tmp_path: Path) -> None:
    """Oracle: the file's name and what is wrong with it, for a file, a folder and nothing."""
    (tmp_path / "text").write_text("not a model")
    (tmp_path / "folder").mkdir()
    wrong = {"none": "No such file", "folder": "Is a directory", "text": "not a model"}
    for name, message in wrong.items():
        with pytest.raises(BundleError, match=f"`{name}`.*{message}"):
            open_session(axengine_sim, tmp_path / name)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_last_group_is_found_on_a_board(count: int) -> None:
    """The stand-in ends as pyaxengine does: first an IndexError, a ValueError later."""
    groups = shape_groups(PyaxengineStandin(count))
    assert [group.inputs["x"].shape for group in groups] == [(n,) for n in range(count)]


def test_choosing_an_engine_imports_none() -> None:
    """A board has no ONNX Runtime and no torch. Oracle: the modules of a fresh interpreter."""
    code = (
        "import sys, axcore.runtime.engine, axcore.runtime.torch_backend as backend;"
        "backend.TorchBackend().availability();"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'pydantic', 'typer', 'psutil'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
