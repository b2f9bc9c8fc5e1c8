"""Building a bundle against the stand-in: results, resuming, failures, and being stopped."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from axcore import BuildRequest, ToolchainError, UsageError
from axcore.bundle import STATE
from axcore.testing import build_folder
from axcore.toolchain import Tool
from axcore.toolchains.pulsar2 import Pulsar2

from .conftest import LAYERS, MADE

if TYPE_CHECKING:
    from collections.abc import Callable

    from axcore.testing import Recorder

    from .conftest import Standin


@pytest.fixture
def build(
    bundle: Path, request_: BuildRequest, standin: Standin, recorder: Recorder
) -> Callable[..., list[Path]]:
    """Build the bundle with the stand-in; `request_` unless another request is given."""

    def run(request: BuildRequest = request_, **options: str) -> list[Path]:
        command = shlex.quote(str(standin.path))
        return build_folder(
            Pulsar2(), bundle, request, options=options, command=command, progress=recorder
        )

    return run


@pytest.mark.parametrize("generation", ["llm_build", "llm_build2"])
def test_everything_is_built_and_moved_beside_the_graphs(
    build: Callable[[], list[Path]],
    bundle: Path,
    standin: Standin,
    recorder: Recorder,
    generation: str,
) -> None:
    """Oracle: the documented names, and the stand-in, which refuses the other generation."""
    standin.set(generation=generation)
    assert build() == [bundle / name for name in MADE]
    assert all(path.is_file() for path in build())
    assert [call[0] for call in standin.calls()] == ["build", generation]
    assert {"build layer 2", "llm: already built"} <= {*recorder.said}
    assert "build layer 2\n" in (bundle / "build/llm.log").read_text()
    assert recorder.done == recorder.totals == {"build": 2 * 2}


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("Foo-VL-3B_vision.onnx", "build"),
        ("Foo-VL-3B_vision.onnx.data", "build"),
        ("hidden_states.tar", "build"),
        ("../check point's/model.safetensors", "llm_build"),
    ],
)
def test_a_changed_input_runs_its_step_again(
    build: Callable[[], list[Path]], bundle: Path, standin: Standin, name: str, again: str
) -> None:
    """Content decides: the same bytes with another time are no change. Oracle: the journal."""
    build()
    path = bundle / name
    os.utime(path, ns=(1, 1))
    build()
    assert len(standin.calls()) == 2
    path.write_bytes(path.read_bytes()[::-1])
    build()
    assert [call[0] for call in standin.calls()[2:]] == [again]


def test_changed_lengths_replace_the_files_of_the_older_build(
    build: Callable[..., list[Path]], bundle: Path, standin: Standin, request_: BuildRequest
) -> None:
    """A board must not find layers of two builds. Oracle: the documented names."""
    build()
    llm = replace(request_.llm, prefill_len=512)
    build(replace(request_, llm=llm))
    layers = [path.name for path in bundle.glob("*_together.axmodel")]
    assert sorted(layers) == [f"foo_vl_text_p512_l{layer}_together.axmodel" for layer in range(3)]
    assert [call[0] for call in standin.calls()] == ["build", "llm_build", "llm_build"]


def test_another_version_of_the_tool_builds_again(
    build: Callable[[], list[Path]], standin: Standin
) -> None:
    """Oracle: the journal."""
    build()
    standin.set(version="7.0")
    build()
    assert len(standin.calls()) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"files": {"llm": 1}}'])
def test_a_damaged_record_only_costs_time(
    build: Callable[[], list[Path]], bundle: Path, standin: Standin, text: str
) -> None:
    """Oracle: the journal, which shows every step twice."""
    build()
    for record in (bundle / STATE).rglob("*.json"):
        record.write_text(text)
    assert len(build()) == len(MADE)
    assert len(standin.calls()) == 4


def test_another_chip_than_that_of_the_configuration_is_refused(
    build: Callable[..., list[Path]], standin: Standin
) -> None:
    """The files may have been edited. Oracle: the empty journal, and a remedy that is a command."""
    with pytest.raises(UsageError, match="for AX650 NPU3, not for AX620E NPU2") as caught:
        build(chip="AX620E")
    assert "--chip AX620E --npu-mode NPU2" in caught.value.hint
    assert standin.calls() == []


def test_files_that_are_left_out_fail_the_step(
    build: Callable[[], list[Path]], standin: Standin, bundle: Path
) -> None:
    """Exit code 0 proves nothing. Oracle: the stand-in, told to skip the last layer."""
    standin.set(leave_out=1)
    with pytest.raises(ToolchainError, match="1 of 4 files are missing") as caught:
        build()
    assert LAYERS[2] in caught.value.message
    assert list(bundle.glob("foo_vl_text*")) == []
    standin.set(leave_out=3)
    with pytest.raises(ToolchainError, match=r"\*_p320_l0_together.axmodel"):
        build()


def test_missing_files_are_told_before_the_tool_runs(
    build: Callable[..., list[Path]],
    make_bundle: Callable[[BuildRequest], Path],
    two_graphs: BuildRequest,
    standin: Standin,
) -> None:
    """Even those of a later step. Oracle: the empty journal, and the words of the message."""
    bundle = make_bundle(two_graphs)
    (bundle / "second.tar").unlink()
    with pytest.raises(ToolchainError, match="`second_graph` cannot begin") as caught:
        build(two_graphs)
    assert "second.tar" in caught.value.message
    assert "--images" in caught.value.hint
    (bundle / "second.tar").touch()
    (bundle / "second_graph.onnx").unlink()
    with pytest.raises(ToolchainError, match=r"second_graph\.onnx"):
        build(two_graphs)
    Path(two_graphs.checkpoint).rename(bundle.parent / "elsewhere")
    with pytest.raises(ToolchainError, match="check point's"):
        build(replace(two_graphs, graphs=()))
    assert standin.calls() == []


def test_a_missing_tool_is_named_with_the_remedy(
    bundle: Path, request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the words of the message, from `build` and from `availability`."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match="`pulsar2` is not on PATH") as caught:
        build_folder(Pulsar2(), bundle, request_)
    assert "docker run" in caught.value.hint
    found = Pulsar2().availability()
    assert (found.available, found.detail) == (False, "`pulsar2` is not on PATH")
    assert found.remedy == caught.value.hint
    assert not Pulsar2().availability("docker 'run").available


def test_the_tool_is_found_on_the_path_or_by_its_command(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative command means the caller's folder, not the bundle. Oracle: where it lies."""
    monkeypatch.setenv("PATH", str(standin.path.parent))
    assert Pulsar2().availability().detail == shlex.quote(str(standin.path))
    monkeypatch.chdir(standin.path.parent)
    found = Pulsar2().availability("./pulsar2 --more")
    assert shlex.split(found.detail) == [str(standin.path), "--more"]


def test_a_program_without_a_builder_is_refused(bundle: Path, request_: BuildRequest) -> None:
    """Success at ``-h`` is not enough: wrappers print their help for anything. Oracle: echo."""
    with pytest.raises(ToolchainError, match="no language-model builder") as caught:
        build_folder(Pulsar2(), bundle, request_, command="echo hello")
    assert "hello llm_build -h" in caught.value.message


def test_variables_reach_the_tool_and_enter_a_container(
    build: Callable[..., list[Path]],
    standin: Standin,
    request_: BuildRequest,
    recorder: Recorder,
) -> None:
    """Notes are warned of as well. Oracle: what the stand-in saw; docker's own syntax."""
    variables = {"FLOAT_MATMUL_USE_CONV_EU": "1"}
    llm = replace(request_.llm, environment=variables, notes=("compare logits",))
    build(replace(request_, llm=llm))
    assert [call["conv_eu"] for call in standin.journal()][-1] == "1"
    assert recorder.warned == ["compare logits"]
    docker = Tool("Pulsar2", ("/usr/bin/docker", "run", "--rm", "image", "pulsar2"), "")
    expected = "/usr/bin/docker run -e FLOAT_MATMUL_USE_CONV_EU=1 --rm image pulsar2 llm_build"
    assert docker.command(["llm_build"], variables) == expected.split()


HANGING = """\
import signal, sys
from pathlib import Path
from axcore import BuildRequest, Calibration, GraphFile, LlmBuildArgs, Port
from axcore.testing import build_folder
from axcore.toolchains.pulsar2 import Pulsar2
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does nohup
build_folder(Pulsar2(), Path(sys.argv[1]), eval(sys.argv[2]), command=sys.argv[3])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_stopping_us_stops_all_that_the_tool_started(
    build: Callable[[], list[Path]],
    bundle: Path,
    request_: BuildRequest,
    standin: Standin,
    number: signal.Signals,
) -> None:
    """The same build then goes on where it was stopped.

    Oracle: the kernel, which no longer knows the stand-in and its own child; the journal.
    """
    standin.set(hang_at="llm")
    command = [sys.executable, "-c", HANGING, str(bundle), repr(request_)]
    with subprocess.Popen(
        [*command, shlex.quote(str(standin.path))], stderr=subprocess.DEVNULL
    ) as process:
        pids = standin.path.with_name("pids")
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        process.send_signal(number)
        assert process.wait(60) != 0
    started = [int(pid) for pid in pids.read_text().split()]
    wait_until(lambda: not any(running(pid) for pid in started))
    assert list(bundle.glob("*.axmodel")) == [bundle / MADE[0]]
    standin.set()
    build()
    assert [call[0] for call in standin.calls()] == ["build", "llm_build", "llm_build"]


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited a minute in vain")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
