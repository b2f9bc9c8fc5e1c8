"""Runs of a tool that is nothing but a shell: results, failures, and what is kept."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axcore import BudgetError, BuildRequest, LlmBuildArgs, ToolchainError
from axcore.bundle import CHECKSUMS
from axcore.process import GRACE_S
from axcore.testing import Recorder, build_folder
from axcore.toolchain import Run, Target, Tool, run_tool
from axcore.toolchains import output
from axcore.toolchains.tool import results_in

from ..bundles import largest_file

if TYPE_CHECKING:
    from axcore.toolchain import Build

SHELL = Tool.find("Shell", "sh -c", remedy="install a shell", advice="or whistle")
NAMES = st.sampled_from(["left", "right"])
REQUEST = BuildRequest("toy", "/nowhere", {}, "image", (), LlmBuildArgs(320, 1023), 0)


class Shell:
    """A toolchain that makes its runs, whatever is asked for."""

    name = "shell"
    options: Mapping[str, str] = {}

    def __init__(self, runs: list[Run], tool: Tool) -> None:
        self.runs, self.tool = runs, tool

    def target(self, options: Mapping[str, str]) -> Target:
        return Target("here")

    def build(self, build: Build) -> None:
        run_tool(build, self.tool, self.runs, "made")


def build(
    folder: Path, *runs: Run, tool: Tool = SHELL, progress: Recorder | None = None
) -> list[Path]:
    """Build as a new process would."""
    return build_folder(Shell([*runs], tool), folder, REQUEST, progress=progress)  # type: ignore[arg-type]


def run_of(name: str, script: str, *patterns: str, inputs: tuple[Path, ...] = ()) -> Run:
    """A run of a shell that promises one file per pattern, kept as ``<name>.<index>``."""
    promised = {f"{name}.{index}": pattern for index, pattern in enumerate(patterns)}
    return Run(name, [script], inputs, lambda _: promised)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.dictionaries(NAMES, st.sampled_from("xy")), min_size=1, max_size=4))
def test_the_bundle_holds_the_last_request_and_nothing_is_repeated(
    requests: list[dict[str, str]],
) -> None:
    """Whatever was asked for before, each time by a new process.

    Oracle: the requests; a log per step, to which only a run appends.
    """
    before: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name)
        for request in requests:
            (bundle / "ran").write_text("")
            scripts = {
                side: f"echo {side} >> ran; echo {text} > made/{side}/{text}"
                for side, text in request.items()
            }
            made = build(bundle, *(run_of(*item, "[xy]") for item in scripts.items()))
            assert {path.stem: path.read_text().strip() for path in made} == request
            assert sorted(bundle.glob("*.0")) == sorted(made)
            changed = {side for side, text in request.items() if before.get(side) != text}
            assert set((bundle / "ran").read_text().split()) == changed
            before = request


def test_a_step_may_take_over_a_result(tmp_path: Path) -> None:
    """Another step makes the file from now on. Oracle: its words."""
    for name in ("old", "new"):
        script = f"echo {name} > made/{name}/out"
        build(tmp_path, Run(name, [script], (), lambda _: {"shared.out": "out"}))
    assert (tmp_path / "shared.out").read_text() == "new\n"


def test_what_a_run_came_to_is_a_file_of_its_step(tmp_path: Path) -> None:
    """With time and memory; a daemon's memory is not known. Oracle: a file and a log of a shell."""

    def examine(output: Path, log: Path, since: float) -> dict[str, str]:
        assert since <= (output / "a.out").stat().st_mtime
        return {"file": (output / "a.out").read_text(), "log": log.read_text()}

    run = replace(run_of("s", "echo said; echo left > made/s/a.out", "a.out"), examine=examine)
    for container in (False, True):
        docker = tmp_path / "docker"
        docker.write_text('#!/bin/sh\nshift\nexec sh -c "$@"\n')
        docker.chmod(0o755)
        tool = Tool.find("Docker", f"{docker} run", remedy="") if container else SHELL
        for _ in range(2):  # the second time it is kept
            made = build(tmp_path, run, tool=tool)
            assert [path.name for path in made] == ["s.0", "s.build.json"]
            (found,) = results_in(made).values()
            assert (found["file"], found["log"]) == ("left\n", "said\n")
            assert found["seconds"] >= 0
            assert (found["peak_bytes"] is None) == container


def test_a_run_that_is_found_bad_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    """Oracle: the error that was raised, and the files."""

    def examine(output: Path, log: Path, since: float) -> dict[str, str]:
        raise ToolchainError(f"{log.name} tells of no good", hint="try again")

    run = replace(run_of("s", "touch made/s/a.out", "a.out"), examine=examine)
    with pytest.raises(ToolchainError, match=r"s\.log tells of no good"):
        build(tmp_path, run)
    assert list(tmp_path.glob("s.*")) == []
    assert (tmp_path / "made/s/a.out").exists()


def test_a_known_failure_is_explained_from_the_end_of_the_log(tmp_path: Path) -> None:
    """Whether the tool fails or leaves files out. Oracle: what the shell printed."""

    def explain(said: str, code: int) -> str:
        return f"{len(said) <= 65536} {said[-4:-1]} {code}"

    tool = replace(SHELL, explain=explain)
    for code in (0, 3):
        script = f"head -c 100000 /dev/zero; printf '\\033[1mw\\033[0mhy\\n'; exit {code}"
        with pytest.raises(ToolchainError) as caught:
            build(tmp_path, run_of("s", script, "a.out"), tool=tool)
        assert caught.value.hint.startswith(f"True why {code}")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("touch made/s/a.out", "1 of 2 files .*\n  first: 0 files instead of 1 match b.out"),
        ("cd made/s && touch a.out b.out c.out", r"first: 3 files instead of 1 match \*\.out"),
        ("mkdir made/s/a.out made/s/b.out", "2 of 2 files"),
    ],
)
def test_a_promise_is_one_file_no_less_and_no_more(tmp_path: Path, script: str, words: str) -> None:
    """Exit code 0 proves nothing, and folders are no files. Oracle: what the shell made."""
    pattern = "*.out" if "c.out" in script else "a.out"
    with pytest.raises(ToolchainError, match=words) as caught:
        build(tmp_path, run_of("s", script, pattern, "b.out"))
    assert str(tmp_path / "made/s.log") in caught.value.message
    assert "what Shell skipped" in caught.value.hint
    assert list(tmp_path.glob("s.*")) == []


def test_a_file_of_an_earlier_run_is_no_result(tmp_path: Path) -> None:
    """Oracle: the folder, filled by hand, and a tool that does nothing."""
    folder = tmp_path / "made/s"
    (folder / "cache").mkdir(parents=True)
    (folder / "a.out").touch()
    with pytest.raises(ToolchainError, match="0 files instead of 1"):
        build(tmp_path, run_of("s", "true", "a.out"))
    assert (folder / "cache").is_dir()


@pytest.mark.parametrize(("script", "memory"), [("exit 3", False), ("kill -9 $$", True)])
def test_a_failure_tells_cause_log_and_last_lines(
    tmp_path: Path, recorder: Recorder, script: str, memory: bool
) -> None:
    """And what the toolchain advises. Oracle: what the shell printed, and how it ended."""
    talk = f"for i in $(seq 30); do echo line $i; done; {script}"
    with pytest.raises(ToolchainError) as caught:
        build(tmp_path, run_of("s", talk, "a.out"), progress=recorder)
    said = caught.value.message.splitlines()
    ending = "was killed by SIGKILL" if memory else "exited with 3"
    assert said[0] == f"build step `s` failed: Shell {ending}"
    assert said[1] == f"  command: {shlex.join([*SHELL.words, talk])}"
    assert said[4:] == [f"    line {index}" for index in range(11, 31)]
    assert (tmp_path / "made/s.log").read_text().count("\n") == 30
    assert recorder.said[-30:] == [f"line {index}" for index in range(1, 31)]
    assert caught.value.hint.endswith("finished steps are kept; or whistle")
    assert caught.value.hint.startswith("it was probably killed because memory ran out") == memory


def test_what_was_hashed_is_known_after_a_failure(tmp_path: Path) -> None:
    """A checkpoint takes minutes. Oracle: the record of checksums."""
    weights = tmp_path / "weights"
    weights.write_bytes(b"many")
    with pytest.raises(ToolchainError):
        build(tmp_path, run_of("s", "false", inputs=(weights,)))
    assert '"../weights"' in (tmp_path / CHECKSUMS).read_text()


def test_a_tool_that_goes_away_is_told_from_a_full_disk(tmp_path: Path) -> None:
    """Only the first is a failure of the tool. Oracle: a program removed; the system's limit."""
    gone = Tool("Gone", (str(tmp_path / "gone"),), "install it")
    with pytest.raises(ToolchainError, match="cannot be started") as caught:
        build(tmp_path, run_of("s", "", "a.out"), tool=gone)
    assert caught.value.hint == "install it"
    with pytest.raises(ToolchainError, match="cannot be started"):
        gone.ask("--version", folder=tmp_path)
    with largest_file(10_000), pytest.raises(BudgetError, match="File too large"):
        build(tmp_path, run_of("s", "head -c 20000 /dev/zero", "a.out"))


@pytest.mark.parametrize("name", ["made", "made/s"])
def test_a_folder_elsewhere_is_not_emptied(tmp_path: Path, name: str) -> None:
    """By a link in the place of a working folder, as in a bundle that was sent. Oracle: a photo."""
    elsewhere, bundle = tmp_path / "elsewhere", tmp_path / "bundle"
    (elsewhere / "s").mkdir(parents=True)
    for photo in (elsewhere / "photo.jpg", elsewhere / "s/photo.jpg"):
        photo.touch()
    (bundle / name).parent.mkdir(parents=True)
    (bundle / name).symlink_to(elsewhere)
    with pytest.raises(ToolchainError, match=rf"bundle/{name} is a link, not a folder") as caught:
        build(bundle, run_of("s", "touch made/s/a.out", "a.out"))
    assert "remove it" in caught.value.hint
    assert {path.name for path in elsewhere.rglob("*.*")} == {"photo.jpg"}


def test_a_log_is_not_written_elsewhere(tmp_path: Path) -> None:
    """Nor into the file behind a hard link. Oracle: the files elsewhere."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    bundle = tmp_path / "bundle"
    (bundle / "made").mkdir(parents=True)
    for link in ("symlink_to", "hardlink_to"):
        getattr(bundle / "made/s.log", link)(mine)
        build(bundle, run_of("s", f"echo {link}; touch made/s/a.out", "a.out"))
        assert (bundle / "made/s.log").read_text() == f"{link}\n"
        assert mine.read_text() == "mine"
        (bundle / "made/s.log").unlink()


@pytest.mark.parametrize(
    "script",
    [
        *("ln -s ../../mine made/s/a.out", "ln -s ../.. made/s/up", "mkfifo made/s/a.out"),
        "rmdir made/s; ln -s .. made/s; cp mine a.out",
    ],
)
def test_a_promise_is_no_link_and_no_pipe(tmp_path: Path, script: str) -> None:
    """What lies elsewhere is moved by nothing. Oracle: the file, and the words."""
    (tmp_path / "mine").write_text("mine")
    pattern = "up/mine" if "up" in script else "a.out"
    with pytest.raises(ToolchainError, match="0 files instead of 1"):
        build(tmp_path, run_of("s", script, pattern))
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_tool_may_print_anything(tmp_path: Path, recorder: Recorder) -> None:
    r"""People see text; the log has all bytes. Oracle: the bytes, and what a terminal would show.

    Lines end by \n or \r\n; \r alone redraws; colours, titles, and what is no text.
    """
    said = (
        rb"\033[1;31mred\033[0m\r\n1%%\r50%%\r100%%\n\033]0;title\007plain\n\n"
        rb"\377\000bytes\n\033(Bend\r"
    )
    script = f"printf '{said.decode()}'; touch made/s/a.out"
    build(tmp_path, run_of("s", script, "a.out"), progress=recorder)
    assert recorder.said[2:] == ["red", "100%", "plain", "\ufffd\x00bytes", "end"]
    raw = (tmp_path / "made/s.log").read_bytes()
    assert raw == subprocess.run(["printf", said], capture_output=True, check=True).stdout


def test_a_line_without_end_costs_no_memory(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown cut, and the log ends at its limit. Oracle: its size; the peak of this process.

    The peak is that of Python's own allocations, while 64 MB are printed.
    """
    monkeypatch.setattr(output, "LOG_BYTES", 1 << 20)
    script = "head -c 64M /dev/zero | tr '\\0' x; echo; echo last; touch made/s/a.out"
    tracemalloc.start()
    try:
        build(tmp_path, run_of("s", script, "a.out"), progress=recorder)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert recorder.said[2:] == ["x" * 4096 + " …", "last"]
    log = (tmp_path / "made/s.log").read_bytes()
    assert log.startswith(b"x" * (1 << 20) + b"\n[the log ends here")
    assert len(log) < (1 << 20) + 100


@pytest.mark.parametrize(
    ("script", "words"), [("sleep 600", "for more than 0.2 s"), ("yes", "more than 1048576 bytes")]
)
def test_an_answer_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    """A tool that hangs or babbles when it is asked is stopped. Oracle: that this ends."""
    monkeypatch.setattr("axcore.toolchains.tool.ANSWER_S", 0.2 if "sleep" in script else 60)
    with pytest.raises(ToolchainError, match=words) as caught:
        SHELL.ask(script, folder=tmp_path)
    assert "run it yourself" in caught.value.hint


def test_a_build_waits_for_the_tool_of_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives up where that does not end. Oracle: the order of lines, by two processes."""
    (tmp_path / "made").mkdir()
    earlier = subprocess.Popen(
        ["flock", "made/lock", "sh", "-c", "echo locked; read _; echo earlier >> order"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with earlier:
        assert earlier.stdout is not None
        assert earlier.stdin is not None
        assert earlier.stdout.readline() == "locked\n"
        run = run_of("s", "echo later >> order; touch made/s/a.out", "a.out")
        monkeypatch.setattr("axcore.toolchains.tool._WAIT_S", -GRACE_S)
        with pytest.raises(ToolchainError, match="Shell still runs for an earlier build in"):
            build(tmp_path, run)
        monkeypatch.undo()
        threading.Timer(0.2, earlier.stdin.close).start()
        build(tmp_path, run)
    assert (tmp_path / "order").read_text().split() == ["earlier", "later"]
