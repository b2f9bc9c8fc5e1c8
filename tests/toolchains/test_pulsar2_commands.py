"""Command lines and ``build.sh``; the script runs through bash against the stand-in."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from axcore import BuildRequest, LlmBuildArgs, UsageError
from axcore.progress import Silent
from axcore.toolchains.pulsar2 import Pulsar2
from axcore.toolchains.pulsar2.commands import graph_command, llm_flags
from axcore.toolchains.pulsar2.script import build_script
from axcore.toolchains.pulsar2.tool import NAME
from axcore.toolchains.turns import lock_name, turn

from .conftest import LLM_RESULT, MADE, RESULT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Standin

# Command lines as published, without the paths of their authors.
ONE_CHUNK = (
    "--kv_cache_len 1023 --hidden_state_type bf16 --prefill_len 512 --parallel 32 --chip AX650"
)
HISTORIES = (
    "--hidden_state_type bf16 --prefill_len 128 --kv_cache_len 2047 --last_kv_cache_len 128 "
    "--last_kv_cache_len 256 --last_kv_cache_len 384 --last_kv_cache_len 512 "
    "--last_kv_cache_len 640 --last_kv_cache_len 768 --last_kv_cache_len 896 "
    "--last_kv_cache_len 1024 --chip AX650 --check_level 1 --parallel 28"
)
GRAPH = (
    "build --input Foo-VL-3B_vision.onnx --config Foo-VL-3B_vision.pulsar2.json "
    "--output_dir build/Foo-VL-3B_vision --output_name Foo-VL-3B_vision.axmodel "
    "--target_hardware AX650 --npu_mode NPU3 --compiler.check 0"
)


def pairs(words: list[str]) -> list[tuple[str, str]]:
    """Flags with their values, in an order of their own."""
    return sorted(zip(words[::2], words[1::2], strict=True))


def test_the_graph_command_is_the_published_one(request_: BuildRequest) -> None:
    """Oracle: the published command, with the names of the bundle."""
    asked = replace(request_, options={**request_.options, "compiler-check": "0"})
    assert graph_command(asked.graphs[0], asked) == GRAPH.split()


def test_an_overflow_of_16_bits_is_not_hidden(request_: BuildRequest) -> None:
    """Oracle: eight builds of a vocoder, which check 2 stopped and check 0 let through to a board
    that refused them. Eight bits go through a table, so they need no check.
    """
    (graph,) = request_.graphs[:1]
    narrow = replace(graph, build_options={"pulsar2": {"quant": {"layer_configs": None}}})
    assert graph_command(graph, request_)[-2:] == ["--compiler.check", "2"]
    assert graph_command(narrow, request_)[-2:] == ["--compiler.check", "0"]


def test_llm_build_gets_the_published_arguments(request_: BuildRequest) -> None:
    """Oracle: two published command lines, one with histories."""
    one = replace(request_, llm=LlmBuildArgs(512, 1023, parallel=32))
    folder = ["--output_path", "build/llm"]
    assert pairs(llm_flags("llm_build", one)) == pairs([*ONE_CHUNK.split(), *folder])
    more = LlmBuildArgs(128, 2047, tuple(range(128, 1025, 128)), parallel=28, check_level=1)
    flags = llm_flags("llm_build", replace(request_, llm=more))
    assert pairs(flags) == pairs([*HISTORIES.split(), *folder])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (LlmBuildArgs(320, 1023), ("1024", "320", "320")),
        # A package that was built both ways: C2047, P128, histories to 1152, prompts to 1280.
        (LlmBuildArgs(128, 2047, tuple(range(128, 1153, 128))), ("2048", "128", "1280")),
    ],
)
def test_llm_build2_counts_positions_and_the_whole_prompt(
    request_: BuildRequest, args: LlmBuildArgs, expected: tuple[str, ...]
) -> None:
    """Oracle: a log that prints both counts, and a package published as built both ways."""
    flags = dict(pairs(llm_flags("llm_build2", replace(request_, llm=args))))
    lengths = ("--max_context", "--prefill_step_size", "--prefill_len")
    assert tuple(flags[name] for name in lengths) == expected
    assert not {"--kv_cache_len", "--last_kv_cache_len"} & set(flags)


def test_only_what_differs_from_published_builds_is_added(request_: BuildRequest) -> None:
    """Oracle: the documented flags."""
    plain = llm_flags("llm_build", request_)
    assert not {"--model_type", "--weight_type", "--npu_mode", "--check_level"} & set(plain)
    args = replace(request_.llm, model_type="foo_text", weight_type="s4", check_level=2)
    options = {"chip": "AX650", "npu-mode": "NPU1"}
    flags = dict(pairs(llm_flags("llm_build", replace(request_, options=options, llm=args))))
    added = {"--model_type": "foo_text", "--weight_type": "s4", "--check_level": "2"}
    assert flags.items() >= {**added, "--npu_mode": "NPU1"}.items()


def run_script(bundle: Path, pulsar2: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(bundle / "build.sh")],
        cwd="/",
        env={**os.environ, "PULSAR2": pulsar2, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("generation", ["llm_build", "llm_build2"])
def test_the_script_builds_everything(
    bundle: Path, standin: Standin, generation: str, request_: BuildRequest
) -> None:
    """From another folder, with spaces and a quote in every path. Oracle: the stand-in, which
    refuses flags of the other generation.
    """
    standin.set(generation=generation)
    done = run_script(bundle, shlex.quote(str(standin.path)))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in bundle.glob("*.axmodel")) == sorted(
        {*MADE} - {RESULT, LLM_RESULT}
    )
    graph, llm = standin.calls()
    assert graph == graph_command(request_.graphs[0], request_)
    assert llm[:3] == [generation, "--input_path", request_.checkpoint]


def test_the_script_waits_for_the_build_that_runs(bundle: Path, standin: Standin) -> None:
    """It takes turns with `axcore build`, by the same lock. Oracle: the lock held by `turn`."""
    with turn(NAME, Silent()) as (held,):
        path = Path(f"/proc/self/fd/{held}").readlink()
        process = subprocess.Popen(
            ["bash", str(bundle / "build.sh")],
            env={**os.environ, "PULSAR2": shlex.quote(str(standin.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert str(path) in process.stderr.readline()
        assert standin.calls() == []
    process.communicate()
    assert process.returncode == 0
    assert len(standin.calls()) == 2


def test_the_script_follows_no_link_to_a_lock(
    bundle: Path, standin: Standin, tmp_path: Path
) -> None:
    """It builds all the same, and says so. Oracle: the link's target, which does not appear."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / lock_name(NAME)).symlink_to(tmp_path / "elsewhere")
    done = run_script(bundle, shlex.quote(str(standin.path)), TMPDIR=str(shared))
    assert done.returncode == 0, done.stderr
    assert "nothing keeps another Pulsar2" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_the_script_takes_a_command_of_several_words_and_another_checkpoint(
    bundle: Path, standin: Standin, request_: BuildRequest
) -> None:
    """As with ``docker run ... pulsar2``. Oracle: the stand-in's journal."""
    moved = Path(request_.checkpoint).rename(bundle.parent / "moved")
    command = shlex.join([sys.executable, "-B", str(standin.path)])
    done = run_script(bundle, command, CHECKPOINT=str(moved))
    assert done.returncode == 0, done.stderr
    assert standin.calls()[1][2] == str(moved)


def test_the_script_stops_before_a_graph_without_samples(bundle: Path, standin: Standin) -> None:
    """Oracle: the stand-in's empty journal, and the words of the message."""
    (bundle / "hidden_states.tar").unlink()
    done = run_script(bundle, shlex.quote(str(standin.path)))
    assert done.returncode == 1
    assert "error: hidden_states.tar is not here" in done.stderr
    assert "--images" in done.stderr
    assert standin.calls() == []


def test_the_script_stops_at_the_first_failure(bundle: Path, standin: Standin) -> None:
    """Oracle: a tool that is not there; the stand-in, which fails with 3 at the graph."""
    done = run_script(bundle, "no-such-pulsar2 --flag")
    assert (done.returncode, standin.calls()) == (1, [])
    assert "no-such-pulsar2 is not on PATH" in done.stderr
    standin.set(fail_at="build")
    assert run_script(bundle, shlex.quote(str(standin.path))).returncode == 3
    assert len(standin.calls()) == 1


def test_the_script_is_valid_bash_with_remarks_and_variables(
    make_bundle: Callable[[BuildRequest], Path], standin: Standin, request_: BuildRequest
) -> None:
    """Notes become comments, variables reach the tool. Oracle: ``bash -n``, the stand-in."""
    args = replace(request_.llm, notes=("Compare logits\nbefore you trust $(this)",))
    bundle = make_bundle(replace(request_, llm=args))
    script = bundle / "build.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "# Compare logits\n# before you trust $(this)\n" in script.read_text()
    assert run_script(bundle, shlex.quote(str(standin.path))).returncode == 0
    assert [call["conv_eu"] for call in standin.journal()] == [None, "1"]


@pytest.mark.parametrize("folder", ["/a b/c", "/it's", '/"$HOME"', "/a}b", "/a\\b", "/*"])
def test_any_checkpoint_folder_survives_the_shell(request_: BuildRequest, folder: str) -> None:
    """Oracle: bash, which prints what it understood."""
    script = build_script(replace(request_, checkpoint=folder))
    line = next(line for line in script.splitlines() if line.startswith("CHECKPOINT="))
    printed = subprocess.run(
        ["bash", "-c", f'{line}\nprintf %s "$CHECKPOINT"'],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == folder


def test_what_the_user_says_of_the_language_model_wins(request_: BuildRequest) -> None:
    """Oracle: the flags of the builder."""
    options = {**request_.options, "weight-type": "s4", "parallel": "2"}
    flags = llm_flags("llm_build", replace(request_, options=options))
    said = dict(pairs(flags))
    assert (said["--weight_type"], said["--parallel"]) == ("s4", "2")


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight-type", "s2"), ("hidden-state-type", "fp32"), ("parallel", "0"), ("parallel", "x")],
)
def test_a_value_that_the_builder_does_not_take_is_refused(name: str, value: str) -> None:
    """Before any work. Oracle: the builder's own list."""
    with pytest.raises(UsageError, match=f"--{name} cannot be `{value}`"):
        Pulsar2().target({"chip": "AX650", name: value})
