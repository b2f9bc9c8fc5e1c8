"""`axcore package`: a folder for a board, from the command line."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer
from typer.main import get_command

import axcore
from axcore import Job, Options, Registry
from axcore.checkpoint import Checkpoint, fabricate, read_config
from axcore.cli import app

from ..built import HEAD, HEIGHT, IMAGE, LAYER, TABLE, WIDTH
from ..bundles import IMAGES, MODEL, STEM, Axcore, Outcome, change_json, contents, environment
from .test_bad_input import assert_explained

if TYPE_CHECKING:
    from pathlib import Path

# What a board is not given: compilers, frameworks, and what the command line rests on.
ABSENT = ("torch", "transformers", "onnx", "onnx_ir", "pydantic", "typer", "psutil", "rich",
          "huggingface_hub", "axcore_plugins_internvl")  # fmt: skip

Ask = Callable[..., Outcome]
"""Runs the script of a board folder in a process of its own: arguments to what it left."""


@pytest.fixture(scope="module")
def board(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Python. Tests do not change it."""
    return axcore.package(
        finished, tmp_path_factory.mktemp("package") / "board", runtime="python"
    ).folder


@pytest.fixture
def ask(board: Path) -> Ask:
    """Ask the folder as on a board."""

    def run(*arguments: object, path: Path = board) -> Outcome:
        done = subprocess.run(
            [sys.executable, board / "run.py", *map(str, arguments)],
            capture_output=True, text=True, check=False, env={**environment(), "PYTHONPATH": path},
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def compiled(own: Path) -> Path:
    """A bundle with stand-ins for what Pulsar2 compiles: its ONNX models under other names."""
    models = [STEM, HEAD.removesuffix(".onnx")]
    models += [LAYER.format(i).removesuffix(".onnx") for i in range(2)]
    for name in models:
        shutil.copyfile(own / f"{name}.onnx", own / f"{name}.axmodel")
    return own


def test_a_folder_for_python_answers_alike(axcore: Axcore, finished: Path, tmp_path: Path) -> None:
    """Its script, in a process that has nothing but what a board has.

    Oracle: the answer of `axcore run` on the bundle. Modules of the installed axcore are shut out
    by the assertion that its own copy is imported.
    """
    board = tmp_path / "board"
    done = axcore("package", finished, "--runtime", "python", "-o", board)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{board}: ")
    question = ("--image", str(IMAGE), "--prompt", "What?", "--max-new-tokens", "6")
    code = (
        "import runpy, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {ABSENT!r}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "import axcore\n"
        f"assert axcore.__file__.startswith({str(board)!r}), axcore.__file__\n"
    )
    script = f"import sys; sys.argv.pop(0)\n{code}"
    found = subprocess.run(
        [sys.executable, "-c", script, board / "run.py", *question],
        capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout == axcore("run", finished, *question).out


def test_the_script_takes_what_axcore_run_takes(ask: Ask) -> None:
    """Under the same names, but for output as data, what is said, and memory kept for later.

    Oracle: `axcore run`.
    """
    command = get_command(app).get_command(None, "run")  # type: ignore[attr-defined]
    known = {name for option in command.params for name in option.opts if name.startswith("-")}
    here = set(re.findall(r"(?<![\w-])-[\w-]+", ask("--help").out))
    said = {"--quiet", "-q", "--verbose", "-v", "--log-file"}
    assert known ^ here == {"--json", "-h", "--help", "--keep-vision"} | said


@pytest.mark.parametrize(
    "asked",
    [
        ("--video", IMAGES, "--fps", 0.01, "--temperature", 0.5, "--seed", 1),
        ("--image", IMAGE, "--video", IMAGE, "--video", IMAGE, "--system", "Be brief."),
        ("--temperature", 2, "--top-k", 40, "--top-p", 0.9, "--seed", 3),
    ],
)
def test_the_script_answers_as_axcore_run_does(
    axcore: Axcore, finished: Path, ask: Ask, asked: tuple[object, ...]
) -> None:
    """The same answer, and lengths and times on standard error. Oracle: `axcore run`."""
    question = (*asked, "-p", "What?", "--max-new-tokens", 60)
    expected, found = axcore("run", finished, *question), ask(*question)
    assert (found.code, found.out) == (0, expected.out), found.err
    lengths = r"^\d+ prompt tokens, \d+ new \(\w+\)"
    assert re.findall(lengths, found.err, re.M) == re.findall(lengths, expected.err, re.M)
    assert re.search(r"first token after \d.* s \(images \d.* s\), then \d.* tokens/s$", found.err)


@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [
        (("--max-new-tokens", 0), 2, "--max-new-tokens 0 is out of range"),
        (("--max-new-tokens", -3), 2, "--max-new-tokens -3 is out of range"),
        (("--fps", 0), 2, "--fps 0.0 is out of range"),
        (("--fps", "nan"), 2, "--fps nan is out of range"),
        (("--top-p", 2), 2, "--top-p 2.0 is out of range"),
        (("--backend", "abacus"), 2, "no backend `abacus`"),
        (("--image", "/nowhere.jpg"), 1, "`/nowhere.jpg` cannot be read"),
        (("--video", "/nowhere"), 1, "`/nowhere` cannot be read"),
    ],
)
def test_the_script_refuses_what_axcore_run_refuses(
    axcore: Axcore, finished: Path, ask: Ask, asked: tuple[object, ...], code: int, reason: str
) -> None:
    """With the same exit code, and nothing on standard output. Oracle: `axcore run`."""
    found = ask("--prompt", "What?", *asked)
    assert (found.code, found.out) == (code, "")
    assert reason in found.err
    assert "Traceback" not in found.err
    assert axcore("run", finished, "--prompt", "What?", *asked).code == code


def test_an_interrupted_script_says_so(ask: Ask, impatient: str, tmp_path: Path) -> None:
    """Exit code 130 by Ctrl-C, before the first token here; no traceback."""
    found = ask("--prompt", "What?", "--backend", impatient, path=tmp_path / "site")
    assert (found.code, found.out) == (130, "\n")
    assert "0 new (interrupted)" in found.err
    assert "Traceback" not in found.err


def test_a_script_whose_reader_leaves_ends_quietly(board: Path) -> None:
    """As behind ``| head``. Nobody reads at all here, so that the first piece meets it."""
    process = subprocess.Popen(
        [sys.executable, board / "run.py", "--prompt", "What?", "--max-new-tokens", "6"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    with process:
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_script_whose_output_is_full_says_so(board: Path) -> None:
    """Linux has a device for it. Oracle: what the system says of a full disk."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - no file of ours
        found = subprocess.run(
            [sys.executable, board / "run.py", "--prompt", "What?", "--max-new-tokens", "6"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False,
        )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: [Errno {errno.ENOSPC}]")
    assert "Traceback" not in found.stderr


def test_a_folder_for_python_can_be_run_here(axcore: Axcore, finished: Path, board: Path) -> None:
    """By the command: it is a bundle too. Oracle: the answer on the bundle."""
    asked = ("-p", "What?", "--image", IMAGE, "--max-new-tokens", 6)
    assert axcore("run", board, *asked).out == axcore("run", finished, *asked).out


def test_a_damaged_folder_is_not_told_of_what_a_board_lacks(
    axcore: Axcore, finished: Path, tmp_path: Path
) -> None:
    """There is no checkpoint to convert or to run by torch. Oracle: the damage."""
    board = tmp_path / "board"
    axcore("package", finished, "--runtime", "python", "-o", board)
    whole = (board / TABLE).read_bytes()
    (board / TABLE).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    changed = axcore("run", board, "-p", "What?")
    assert_explained(changed, f"{TABLE} has another content", "package the bundle again")
    assert "axcore convert" not in changed.err
    (board / TABLE).write_bytes(whole)
    (board / LAYER.format(1)).unlink()
    lost = axcore("run", board, "-p", "What?")
    assert_explained(lost, f"layer models are missing in {board}")
    assert "--backend torch" not in lost.err


def test_a_folder_for_axllm_names_what_is_there(
    axcore: Axcore, compiled: Path, tmp_path: Path
) -> None:
    """With the settings of the family. Oracle: the bundle, and the published keys."""
    done = axcore("package", compiled, "--runtime", "axllm", "-o", tmp_path / "board")
    assert done.code == 0, done.err
    assert "axllm run" in done.err
    config = json.loads((tmp_path / "board" / "config.json").read_text())
    expected = {
        "tokenizer_type": "Qwen3VL", "vlm_type": "Qwen2_5VL", "axmodel_num": 2,
        "system_prompt": "You are a helpful assistant.",
        "tokens_embed_num": 512, "vision_height": HEIGHT, "vision_width": WIDTH,
    }  # fmt: skip
    assert config.items() >= expected.items()
    listed = {value for key, value in config.items() if key.startswith(("filename", "url", "post"))}
    assert listed <= {path.name for path in (tmp_path / "board").iterdir()}


def test_published_lengths_of_qwen_are_refused_for_axllm(
    axcore: Axcore, compiled: Path, tmp_path: Path
) -> None:
    """They crash it; the hint is the conversion without options for lengths, whose defaults run."""
    llm = {"prefill_len": 320, "kv_cache_len": 1023, "last_kv_cache_len": []}
    build = json.loads((compiled / "axcore.json").read_text())["build"]
    change_json(compiled / "axcore.json", build={**build, "llm": {**build["llm"], **llm}})
    done = axcore("package", compiled, "--runtime", "axllm", "-o", tmp_path / "board")
    assert_explained(done, "a power of two, not of 320", f"-o {compiled} --height {HEIGHT}")
    assert "-len" not in done.err


def test_axllm_is_given_the_system_message_that_prompts_have(tmp_path: Path) -> None:
    """Of every model that it runs. Oracle: a prompt without one, decoded."""
    registry = Registry()
    for model in ("qwen2.5-vl-3b", "internvl3.5-1b", "internvl3-2b", "minicpm-v-4.6"):
        card = registry.find(model).card
        folder = fabricate(card, "tiny", tmp_path / model)
        config = read_config(folder)
        job = Job(
            card, "", Checkpoint(folder, config, (), {}), "image", card.profiles["image"], Options()
        )
        prompt = registry.call(
            registry.find(model).family, "prepare_prompt", job=job,
            messages=[{"role": "user", "content": "What?"}],
        )  # fmt: skip
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        text = tokenizer.decode(prompt.input_ids, skip_special_tokens=False)
        said = card.runtimes["axllm"].get("system_prompt")
        before = f"<|im_start|>system\n{said}<|im_end|>\n" if said else ""
        assert text.startswith(f"{before}<|im_start|>user\nWhat?<|im_end|>\n")


def test_json_is_the_manifest_of_the_folder(
    axcore: Axcore, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stdout alone; without -o the folder is named after bundle and runtime, here.

    Oracle: sizes and checksums of the files.
    """
    monkeypatch.chdir(tmp_path)
    done = axcore("package", finished, "--runtime", "python", "--json")
    data: dict[str, Any] = json.loads(done.out)
    assert data["folder"] == f"{finished.name}-python"
    assert (data["packaged_for"], data["model"]["id"]) == ("python", MODEL)
    found = contents(tmp_path / data["folder"])
    del found["axcore.json"]
    assert {name: entry["sha256"] for name, entry in data["files"].items()} == found


@pytest.mark.parametrize(
    ("model", "types"),
    [
        ("qwen2.5-vl-3b", ("Qwen3VL", "Qwen2_5VL")),
        ("qwen2.5-vl-7b", ("Qwen3VL", "Qwen2_5VL")),
        ("internvl3-2b", ("InternVL3", "InternVL3")),
        ("internvl3.5-1b", ("InternVL3", "InternVL3")),
        ("minicpm-v-4.6", ("MiniCPMV46VL", "MiniCPMV46VL")),
        ("minicpm-v-4", None),
        ("minicpm-v-2", None),
    ],
)
def test_families_say_what_axllm_calls_their_models(
    model: str, types: tuple[str, str] | None
) -> None:
    """Oracle: published packages, and types that every axllm has; two models have none."""
    settings = Registry().find(model).card.runtimes.get("axllm", {})
    found = (settings["tokenizer_type"], settings["vlm_type"]) if settings else None
    assert found == types
    if model == "minicpm-v-4.6":
        assert settings["full_attention_interval"] == 4


# Bad input ---------------------------------------------------------------------------------------


def test_a_runtime_that_is_not_there(axcore: Axcore, finished: Path) -> None:
    """The message lists those there are; none is taken by default."""
    outcome = axcore("package", finished, "--runtime", "abacus")
    assert (outcome.code, outcome.out) == (2, "")
    assert "axllm" in outcome.err
    assert "python" in outcome.err
    assert axcore("package", finished).code == 2
