"""Steps of a toolchain that is nothing but a shell: results, failures, and what is kept."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axcore import ToolchainError
from axcore.progress import Silent
from axcore.testing import Recorder
from axcore.toolchains.steps import Step, Steps, Tool

SHELL = Tool.find("Shell", "sh -c", remedy="install a shell", advice="or whistle")
NAMES = st.sampled_from(["left", "right"])


def step(name: str, script: str, *patterns: str, inputs: tuple[Path, ...] = ()) -> Step:
    """A step of a shell that promises one file per pattern, kept as ``<step>.<index>``."""
    promised = {f"{name}.{index}": pattern for index, pattern in enumerate(patterns)}
    return Step(name, [script], inputs, lambda _: promised)


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
            steps = [step(side, script, "[xy]") for side, script in scripts.items()]
            made = Steps(bundle, "made", SHELL, Silent()).run(steps)
            assert {path.stem: path.read_text().strip() for path in made} == request
            assert sorted(bundle.glob("*.0")) == sorted(made)
            changed = {side for side, text in request.items() if before.get(side) != text}
            assert set((bundle / "ran").read_text().split()) == changed
            before = request


def test_a_step_may_take_over_a_result(tmp_path: Path, recorder: Recorder) -> None:
    """Another step makes the file from now on. Oracle: its words."""
    for name in ("old", "new"):
        script = f"echo {name} > made/{name}/out"
        made = Step(name, [script], (), lambda _: {"shared.out": "out"})
        Steps(tmp_path, "made", SHELL, recorder).run([made])
    assert (tmp_path / "shared.out").read_text() == "new\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("touch made/s/a.out", "1 of 2 files .*\n  first: 0 files instead of 1 fit b.out"),
        ("cd made/s && touch a.out b.out c.out", r"first: 3 files instead of 1 fit \*\.out"),
        ("mkdir made/s/a.out made/s/b.out", "2 of 2 files"),
    ],
)
def test_a_promise_is_one_file_no_less_and_no_more(
    tmp_path: Path, recorder: Recorder, script: str, words: str
) -> None:
    """Exit code 0 proves nothing, and folders are no files. Oracle: what the shell made."""
    pattern = "*.out" if "c.out" in script else "a.out"
    with pytest.raises(ToolchainError, match=words) as caught:
        Steps(tmp_path, "made", SHELL, recorder).run([step("s", script, pattern, "b.out")])
    assert str(tmp_path / "made/s.log") in caught.value.message
    assert "what Shell skipped" in caught.value.hint
    assert list(tmp_path.glob("s.*")) == []


def test_a_file_of_an_earlier_run_is_no_result(tmp_path: Path, recorder: Recorder) -> None:
    """Oracle: the folder, filled by hand, and a tool that does nothing."""
    folder = tmp_path / "made/s"
    (folder / "cache").mkdir(parents=True)
    (folder / "a.out").touch()
    with pytest.raises(ToolchainError, match="0 files instead of 1"):
        Steps(tmp_path, "made", SHELL, recorder).run([step("s", "true", "a.out")])
    assert (folder / "cache").is_dir()


@pytest.mark.parametrize(("script", "memory"), [("exit 3", False), ("kill -9 $$", True)])
def test_a_failure_tells_cause_log_and_last_lines(
    tmp_path: Path, recorder: Recorder, script: str, memory: bool
) -> None:
    """And what the toolchain advises. Oracle: what the shell printed, and how it ended."""
    talk = f"for i in $(seq 30); do echo line $i; done; {script}"
    with pytest.raises(ToolchainError) as caught:
        Steps(tmp_path, "made", SHELL, recorder).run([step("s", talk, "a.out")])
    said = caught.value.message.splitlines()
    ending = "was killed by SIGKILL" if memory else "exited with 3"
    assert said[0] == f"build step `s` failed: Shell {ending}"
    assert said[1] == f"  command: {shlex.join([*SHELL.words, talk])}"
    assert said[4:] == [f"    line {index}" for index in range(11, 31)]
    assert (tmp_path / "made/s.log").read_text().count("\n") == 30
    assert recorder.said[-30:] == [f"line {index}" for index in range(1, 31)]
    assert caught.value.hint.endswith("finished steps are kept; or whistle")
    assert caught.value.hint.startswith("it was probably killed for want of memory") == memory


def test_what_was_hashed_is_known_after_a_failure(tmp_path: Path, recorder: Recorder) -> None:
    """A checkpoint takes minutes. Oracle: the file of the state."""
    weights = tmp_path / "weights"
    weights.write_bytes(b"many")
    with pytest.raises(ToolchainError):
        Steps(tmp_path, "made", SHELL, recorder).run([step("s", "false", inputs=(weights,))])
    assert str(weights) in (tmp_path / "made/state.json").read_text()


def test_a_tool_that_goes_away_is_told_from_a_full_disk(tmp_path: Path, recorder: Recorder) -> None:
    """Only the first is a failure of the tool. Oracle: a program removed, and /dev/full."""
    gone = Tool("Gone", (str(tmp_path / "gone"),), "install it")
    with pytest.raises(ToolchainError, match="cannot be started") as caught:
        Steps(tmp_path, "made", gone, recorder).run([step("s", "", "a.out")])
    assert caught.value.hint == "install it"
    with pytest.raises(ToolchainError, match="cannot be started"):
        gone.ask("--version", folder=tmp_path)
    (tmp_path / "made/s.log").unlink()
    (tmp_path / "made/s.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Steps(tmp_path, "made", SHELL, recorder).run([step("s", "echo much", "a.out")])
