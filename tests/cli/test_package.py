"""`axcore package`: a folder for a board, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import axcore
from axcore import Registry

from ..built import HEAD, HEIGHT, LAYER, PICTURE, TABLE, WIDTH, answered, message
from ..bundles import MODEL, STEM, Axcore, contents, environment
from .test_bad_input import assert_explained

if TYPE_CHECKING:
    from pathlib import Path

# What a board is not given: compilers, frameworks, and what the command line rests on.
ABSENT = ("torch", "transformers", "onnx", "onnx_ir", "pydantic", "typer", "psutil", "rich",
          "huggingface_hub", "axcore_plugins_internvl")  # fmt: skip


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
    question = ("--image", str(PICTURE), "--prompt", "What?", "--max-new-tokens", "6")
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


def test_a_folder_for_python_can_be_run_here(
    axcore: Axcore, finished: Path, tmp_path: Path
) -> None:
    """By command and library: it is a bundle too. Oracle: the answer on the bundle."""
    board = tmp_path / "board"
    axcore("package", finished, "--runtime", "python", "-o", board)
    asked = ("-p", "What?", "--image", PICTURE, "--max-new-tokens", 6)
    assert axcore("run", board, *asked).out == axcore("run", finished, *asked).out


def test_a_folder_for_axllm_names_what_is_there(
    axcore: Axcore, compiled: Path, tmp_path: Path
) -> None:
    """With the settings of the family. Oracle: the files, and the published keys."""
    done = axcore("package", compiled, "--runtime", "axllm", "-o", tmp_path / "board")
    assert done.code == 0, done.err
    assert "axllm run" in done.err
    config = json.loads((tmp_path / "board" / "config.json").read_text())
    expected = {
        "model_name": MODEL,
        "tokenizer_type": "Qwen3VL",
        "vlm_type": "Qwen2_5VL",
        "system_prompt": "You are a helpful assistant.",
        "axmodel_num": 2,
        "template_filename_axmodel": LAYER.replace("{}", "%d").replace(".onnx", ".axmodel"),
        "filename_tokens_embed": TABLE,
        "filename_image_encoder_axmodel": f"{STEM}.axmodel",
        "tokens_embed_num": 512,
        "tokens_embed_size": 64,
        "vision_height": HEIGHT,
        "vision_width": WIDTH,
    }
    assert config.items() >= expected.items()
    listed = {value for key, value in config.items() if key.startswith(("filename", "url", "post"))}
    assert listed <= {path.name for path in (tmp_path / "board").iterdir()}


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


def test_the_library_does_the_same(finished: Path, tmp_path: Path) -> None:
    """`axcore.package` returns what was made. Oracle: the library's answer on the bundle."""
    packaged = axcore.package(finished, tmp_path / "board", runtime="python")
    assert packaged.folder == tmp_path / "board"
    asked = [message("What?", PICTURE)]
    here, there = (axcore.load(folder) for folder in (finished, packaged.folder))
    assert answered(there, asked, None, 6).token_ids == answered(here, asked, None, 6).token_ids


@pytest.mark.parametrize(
    ("model", "types"),
    [
        ("qwen2.5-vl-3b", ("Qwen3VL", "Qwen2_5VL")),
        ("qwen2.5-vl-7b", ("Qwen3VL", "Qwen2_5VL")),
        ("internvl3-2b", ("InternVL3", "InternVL3")),
        ("internvl3.5-1b", ("InternVL3_5", "InternVL3")),
        ("minicpm-v-4.6", ("MiniCPMV46VL", "MiniCPMV46VL")),
        ("minicpm-v-4", None),
        ("minicpm-v-2", None),
    ],
)
def test_families_say_what_axllm_calls_their_models(
    model: str, types: tuple[str, str] | None
) -> None:
    """Oracle: the settings in packages that Axera publishes; two models have no type there."""
    settings = Registry().find(model).card.axllm
    found = (settings["tokenizer_type"], settings["vlm_type"]) if settings else None
    assert found == types
    if model == "minicpm-v-4.6":
        assert settings["full_attention_interval"] == 4


# Bad input ---------------------------------------------------------------------------------------


def test_what_was_not_built(axcore: Axcore, finished: Path, bundle: Path, tmp_path: Path) -> None:
    """The hint is the command that builds, for either runtime; no folder appears."""
    out = tmp_path / "board"
    for runtime in ("python", "axllm"):
        outcome = axcore("package", bundle, "--runtime", runtime, "-o", out)
        assert_explained(outcome, "no layer models", f"axcore build {bundle} --toolchain")
    outcome = axcore("package", finished, "--runtime", "axllm", "-o", out)
    assert_explained(outcome, "no .axmodel files", "--toolchain pulsar2")
    assert not out.exists()


def test_a_folder_of_somebody_else(axcore: Axcore, finished: Path, tmp_path: Path) -> None:
    """It stays as it is. Oracle: its content."""
    (tmp_path / "notes.txt").write_text("mine")
    outcome = axcore("package", finished, "--runtime", "python", "-o", tmp_path)
    assert_explained(outcome, "was not packaged by axcore", "nothing was changed")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_files_that_were_changed(axcore: Axcore, own: Path, tmp_path: Path) -> None:
    """A graph or an embedding that is not as it was written is not given to a board."""
    for name in (f"{STEM}.onnx.data", TABLE):
        content = (own / name).read_bytes()
        (own / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        outcome = axcore("package", own, "--runtime", "python", "-o", tmp_path / "board")
        assert_explained(outcome, name, "axcore convert")
        (own / name).write_bytes(content)
    assert not (tmp_path / "board").exists()


def test_a_runtime_that_is_not_there(axcore: Axcore, finished: Path) -> None:
    """The message lists those there are; none is taken by default."""
    outcome = axcore("package", finished, "--runtime", "abacus")
    assert (outcome.code, outcome.out) == (2, "")
    assert "axllm" in outcome.err
    assert "python" in outcome.err
    assert axcore("package", finished).code == 2
