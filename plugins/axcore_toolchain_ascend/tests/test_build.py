"""Building a bundle against the stand-in: results, resuming and failures."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from axcore_toolchain_ascend import Ascend

from axcore import BuildRequest, ToolchainError, UsageError
from axcore.testing import Recorder, build_folder

from .conftest import Standin, flags_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MADE = ["tower.om", "it's a resampler.om"]
GRAPHS = ["tower.onnx", "it's a resampler.onnx"]


@pytest.fixture
def build(
    bundle: Path, request_: BuildRequest, standin: Standin, recorder: Recorder
) -> Callable[..., list[Path]]:
    """Build the bundle with the stand-in; `request_` unless another request is given."""

    def run(request: BuildRequest = request_, **options: str) -> list[Path]:
        named = {name.replace("_", "-"): value for name, value in options.items()}
        return build_folder(Ascend(), bundle, request, options=named, progress=recorder)

    return run


def test_every_graph_becomes_an_om_file_beside_it(
    build: Callable[[], list[Path]], bundle: Path, standin: Standin, recorder: Recorder
) -> None:
    """And the log holds what is said. Oracle: names, and the stand-in, which checks shapes."""
    assert build() == [bundle / name for name in MADE]
    assert all(path.is_file() for path in build())
    assert standin.models() == GRAPHS
    assert "ATC run success, welcome to the next use." in recorder.said
    assert "ATC run success" in (bundle / "build/ascend/tower.log").read_text()


@pytest.mark.parametrize("change", ["graph", "weights", "precision", "card", "version", "result"])
def test_a_change_builds_again_what_it_touches(
    build: Callable[..., list[Path]], bundle: Path, standin: Standin, cann: Path, change: str
) -> None:
    """Content decides: the same bytes with another time are no change. Oracle: the journal."""
    data = bundle / "tower.onnx.data"
    data.write_bytes(b"weights")
    build()
    os.utime(bundle / "tower.onnx", ns=(1, 1))
    options = {"precision": {"precision_mode": "origin"}, "card": {"soc_version": "Ascend910B1"}}
    if change == "graph":
        model = (bundle / "it's a resampler.onnx").read_bytes()
        (bundle / "it's a resampler.onnx").write_bytes(model + b"\x32\x01x")  # a doc string
    elif change == "weights":
        data.write_bytes(b"another")
    elif change == "version":
        cann.write_text("version=8.5.0\n")
    elif change == "result":
        (bundle / MADE[0]).write_text("cut")
    build(**options.get(change, {}))
    again = {"graph": GRAPHS[1:], "weights": GRAPHS[:1], "result": GRAPHS[:1]}.get(change, GRAPHS)
    assert standin.models() == [*GRAPHS, *again]


def test_the_options_reach_the_tool_and_the_script(
    build: Callable[..., list[Path]], request_: BuildRequest, standin: Standin
) -> None:
    """Those of the build the tool, those of the conversion the script.

    Oracle: the stand-in's journal, and the text of the script.
    """
    options = {"soc-version": "Ascend910B4", "precision-mode": "mixed_bfloat16"}
    build(**{name.replace("-", "_"): value for name, value in options.items()})
    flags = flags_of(standin.calls()[0])
    assert (flags["soc_version"], flags["precision_mode_v2"]) == ("Ascend910B4", "mixed_bfloat16")
    (script,) = Ascend().prepare(replace(request_, options=options)).values()
    assert "SOC_VERSION:-Ascend910B4" in script
    assert "PRECISION_MODE:-mixed_bfloat16" in script


def test_the_hosts_name_is_taken_off_a_result(
    build: Callable[[], list[Path]], standin: Standin
) -> None:
    """Oracle: the name that atc gives to models with code for the host."""
    standin.set(suffix="_linux_x86_64")
    assert [path.name for path in build()] == MADE


def test_a_missing_graph_is_told_before_the_tool_runs(
    build: Callable[[], list[Path]], bundle: Path, standin: Standin
) -> None:
    """Even that of a later step. Oracle: the empty journal, and the words of the message."""
    (bundle / GRAPHS[1]).unlink()
    with pytest.raises(ToolchainError, match="`it's a resampler` cannot begin"):
        build()
    assert standin.calls() == []


def test_without_the_tool_the_script_is_the_remedy(
    bundle: Path, request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has it. Oracle: the words of the message."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match="`atc` is not on PATH") as caught:
        build_folder(Ascend(), bundle, request_)
    assert "build_ascend.sh" in caught.value.hint
    found = Ascend().availability()
    assert (found.available, found.detail) == (False, "`atc` is not on PATH")
    assert not Ascend().availability("docker 'run").available


def test_the_card_is_asked_for_before_anything_is_done(
    bundle: Path, request_: BuildRequest, standin: Standin
) -> None:
    """Oracle: the words of the message, and the stand-in's empty journal."""
    with pytest.raises(UsageError, match="no --soc-version") as caught:
        build_folder(Ascend(), bundle, replace(request_, options={}))
    assert "npu-smi info" in caught.value.hint
    assert standin.calls() == []
    assert not (bundle / "build").exists()


def test_the_tool_needs_the_environment_of_cann(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of one's own, such as a container, does not. Oracle: what was set up."""
    path = shlex.quote(str(standin.path))
    assert Ascend().availability().detail == f"{path} CANN 8.2.RC1"
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    found = Ascend().availability()
    assert not found.available
    assert "ASCEND_TOOLKIT_HOME" in found.detail
    assert "set_env.sh" in found.remedy
    assert Ascend().availability(f"{path} --more").detail == f"{path} --more"
