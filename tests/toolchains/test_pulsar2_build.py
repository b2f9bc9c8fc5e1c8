"""Building a bundle against the stand-in: results, resuming, failures, and being stopped."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
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
from axcore.toolchains.pulsar2.failures import explain, failures

from .conftest import LAYERS, MADE, RESULT

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
    llm = replace(request_.llm, notes=("compare logits",))
    build(replace(request_, llm=llm))
    assert [call["conv_eu"] for call in standin.journal()][-2:] == [None, "1"]
    assert recorder.warned == ["compare logits"]
    docker = Tool("Pulsar2", ("/usr/bin/docker", "run", "--rm", "image", "pulsar2"), "")
    expected = "/usr/bin/docker run -e FLOAT_MATMUL_USE_CONV_EU=1 --rm image pulsar2 llm_build"
    assert docker.command(["llm_build"], variables) == expected.split()


def test_the_convolution_unit_is_for_chips_that_have_it(
    make_bundle: Callable[[BuildRequest], Path], request_: BuildRequest, standin: Standin
) -> None:
    """Others do not know the variable. Oracle: what the stand-in saw."""
    other = replace(request_, options={"chip": "AX620E"})
    build_folder(Pulsar2(), make_bundle(other), other, command=shlex.quote(str(standin.path)))
    assert {call["conv_eu"] for call in standin.journal()} == {None}


# Results -----------------------------------------------------------------------------------------


def test_what_a_graph_came_to_is_kept_and_shown(
    build: Callable[[], list[Path]], bundle: Path, recorder: Recorder
) -> None:
    """Of a step that was kept, too. Oracle: what the stand-in printed."""
    build()
    (row,) = [line for line in recorder.said if line.startswith("Foo-VL-3B_vision  1 ")]
    for cell in ("9.3 ms ±10 %", "0.0134 G", "0.99871", "op_8:onnx 0.99871", "16: 2", " s ", "MB"):
        assert cell in row
    (llm,) = [line for line in recorder.said if line.startswith("llm ")]
    assert " s " in llm
    assert "MB" in llm
    kept = json.loads((bundle / RESULT).read_text())
    assert (kept["subgraphs"], kept["max_cycle"], kept["faults"]) == (1, 8_368_117, [])
    assert kept["peak_bytes"] > 1 << 20
    build()
    assert [line for line in recorder.said if line == row] == [row, row]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"cosine": 0.11}, "cosine of 0.1100 only"), ({"bits": 8}, "U16 was asked for DEFAULT")],
)
def test_a_result_that_does_not_hold_ends_the_build(
    build: Callable[..., list[Path]],
    bundle: Path,
    standin: Standin,
    recorder: Recorder,
    settings: dict[str, object],
    fault: str,
) -> None:
    """When all is built, and every time until it is accepted. Oracle: the journal; what is there.

    The configuration asks for 16 bits.
    """
    ask_for_16_bits(bundle)
    standin.set(**settings)
    for _ in range(2):
        with pytest.raises(ToolchainError, match=fault) as caught:
            build()
        assert "--accept-faults yes" in caught.value.hint
    assert fault in recorder.warned[0]
    assert [path.name for path in build(**{"accept-faults": "yes"})] == MADE
    assert [call[0] for call in standin.calls()] == ["build", "llm_build"]


def test_a_model_of_several_parts_is_no_result(
    build: Callable[..., list[Path]], bundle: Path, standin: Standin
) -> None:
    """It would kill a loader, so it stays out of the bundle. Oracle: what is there."""
    standin.set(parts=19)
    with pytest.raises(ToolchainError, match="a model of 19 subgraphs"):
        build()
    assert not (bundle / MADE[0]).exists()
    assert (bundle / "build/Foo-VL-3B_vision" / MADE[0]).exists()
    build(**{"accept-faults": "yes"})
    assert (bundle / MADE[0]).exists()


def ask_for_16_bits(bundle: Path) -> None:
    path = bundle / "Foo-VL-3B_vision.pulsar2.json"
    config = json.loads(path.read_text())
    config["quant"]["layer_configs"] = [
        {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"}
    ]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("words", "explained"),
    [
        ("KeyError: 'dont support LRN opr'", "cannot parse"),
        ("TileFailException: op_3:Pow cannot tile", "exponents 0.25, 0.5, 2 and 4"),
        ("TileFailException: tuple index out of range", r"the shape \[1, N\]"),
        ("RuntimeError: shapefn failed", "make all shapes static"),
        ("KeyError: 'alpha' in AxQuantizedGemm", "fold the factor"),
        ("AssertionError: (p.n * p.ksize) % 256 == 0", "second operand"),
        ("pyrun failed", "float32"),
    ],
)
def test_a_failure_that_was_seen_before_is_explained(
    build: Callable[[], list[Path]], standin: Standin, words: str, explained: str
) -> None:
    """With the one who saw it. Oracle: public notes on real builds, in whose words this fails."""
    standin.set(fail_at="build", dying_words=words)
    with pytest.raises(ToolchainError) as caught:
        build()
    assert re.search(f"{explained}.*source: ", caught.value.hint)


def test_every_known_failure_can_be_told_from_those_before_it() -> None:
    """Nothing in the table is hidden by an entry above. Oracle: its own marks."""
    for known in failures():
        said, code = " ".join(known.marks), (*known.codes, 1)[0]
        assert explain(said, code).startswith(f"probably {known.meaning}")


def test_builds_take_turns(
    build: Callable[[], list[Path]], recorder: Recorder, tmp_path: Path
) -> None:
    """Two at once left broken models. Oracle: the order of lines, by two processes."""
    lock = tmp_path / "axcore-Pulsar2.lock"
    lock.write_text("7 on elsewhere")
    script = "echo locked; read _"
    with subprocess.Popen(
        ["flock", lock, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        end = other.stdin.close
        waiting = threading.Thread(target=build)
        waiting.start()
        wait_until(lambda: any("process 7 on elsewhere" in line for line in recorder.warned))
        assert "build layer 0" not in recorder.said
        end()
        waiting.join()
    assert "build layer 0" in recorder.said
    assert lock.read_text().startswith(f"{os.getpid()} on ")


def test_where_no_lock_can_be_had_is_said(
    build: Callable[[], list[Path]],
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First the user's own cache is tried. Oracle: links, which no lock follows."""
    lock = tmp_path / "axcore-Pulsar2.lock"
    lock.symlink_to("elsewhere")
    build()
    assert any(line.startswith(f"{lock} cannot be locked") for line in recorder.said)
    assert recorder.warned == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("AXCORE_CACHE", str(tmp_path / "file"))
    (tmp_path / "a bundle/hidden_states.tar").write_bytes(b"others")
    build()
    assert "at the same time" in recorder.warned[0]


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
