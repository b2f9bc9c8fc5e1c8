"""A checkpoint is quantised whole or not at all; gptqmodel itself is replaced by a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from axcore import convert, quantize
from axcore.errors import (
    AxcoreError,
    BudgetError,
    BundleError,
    CheckpointError,
    ToolchainError,
    UsageError,
)
from axcore.quantization.environment import find_python
from axcore.testing import Recorder

from . import toy
from .conftest import GROUP, LIBRARY, Finished, standin_python

if TYPE_CHECKING:
    from axcore import Registry

MATRICES = 7 * toy.LAYERS
Run = Callable[..., Recorder]
Refusal = Callable[..., str]


@pytest.fixture
def run(checkpoints: dict[str, Path], registry: Registry, tmp_path: Path) -> Run:
    """Quantise into `out` in the test's folder, the flat layout unless another one is given."""

    def quantised(
        python: Path | None, folder: Path = checkpoints["flat"], **settings: Any
    ) -> Recorder:
        settings = {"group_size": GROUP, "progress": Recorder(), **settings}
        quantize(str(folder), tmp_path / "out", python=python, registry=registry, **settings)
        progress: Recorder = settings["progress"]
        return progress

    return quantised


@pytest.fixture
def refusal(run: Run, tmp_path: Path) -> Refusal:
    """Return the message; nothing but a log may be there afterwards that was not before."""

    def refused(kind: type[AxcoreError], python: Path | None, **settings: Any) -> str:
        before = {path.name for path in tmp_path.iterdir()}
        with pytest.raises(kind) as caught:
            run(python, **settings)
        assert caught.value.hint
        assert {path.name for path in tmp_path.iterdir()} - before <= {"out.log"}
        return f"{caught.value.message}\n{caught.value.hint}"

    return refused


def test_only_matrices_of_the_language_model_change(finished: Finished, pack: Any) -> None:
    """Oracle: the stand-in's packing of the original weight; every other tensor bit by bit."""
    before = load_file(finished.source / "model.safetensors")
    after = load_file(finished.out / "model.safetensors")
    packed = {key for key, tensor in before.items() if ".layers." in key and tensor.ndim == 2}
    assert len(packed) == MATRICES == finished.result.matrices
    for key, tensor in before.items():
        if key in packed:
            assert key not in after
            for part, array in pack(tensor.numpy(), 4, GROUP).items():
                found = after.pop(f"{key.removesuffix('weight')}{part}")
                assert torch.equal(found, torch.from_numpy(array))
        else:
            assert torch.equal(after.pop(key), tensor)
    assert not after


def test_the_files_beside_the_weights_stay(finished: Finished) -> None:
    """Also code, which is copied and never run. Oracle: the bytes of the original."""
    for name in ("README.md", "modeling_toy.py", "tokenizer.json", "tokenizer_config.json"):
        assert (finished.out / name).read_bytes() == (finished.source / name).read_bytes()
    config = json.loads((finished.out / "config.json").read_text())
    said = config.pop("quantization_config")
    assert config == toy.CONFIGS["flat"]
    assert (said["quant_method"], said["bits"], said["group_size"]) == ("gptq", 4, GROUP)
    assert said["meta"] == {"quantizer": ["standin:1"]}
    assert json.loads((finished.out / "quantize_config.json").read_text()) == said


def test_nothing_is_left_beside_the_result(finished: Finished) -> None:
    """Neither scratch nor lock nor log. Oracle: the folder's listing."""
    assert [path.name for path in finished.out.parent.iterdir()] == [finished.out.name]


def test_the_report_says_what_changed(finished: Finished) -> None:
    """Oracle: bytes counted from the files; rounding to nearest keeps states nearly parallel."""
    result = finished.result
    report = json.loads((finished.out / "quantize_report.json").read_text())
    assert report["perplexity_after"] == result.perplexity_after
    for folder, size in (finished.source, result.bytes_before), (finished.out, result.bytes_after):
        tensors = load_file(folder / "model.safetensors")
        assert size == sum(t.nbytes for key, t in tensors.items() if "visual" not in key)
    assert 0.9 < result.cosine_min <= result.cosine_mean < 1
    assert result.perplexity_before != result.perplexity_after
    assert result.perplexity_after == pytest.approx(result.perplexity_before, rel=0.2)
    assert 0.02 < result.worst_weight_error < 0.2
    for work in ("quantise", "measure"):
        assert finished.progress.done[work] == finished.progress.totals[work] == 2
    assert not any("\u2591" in line for line in finished.progress.said)


def test_the_result_converts(finished: Finished, registry: Registry, tmp_path: Path) -> None:
    """As the float checkpoint does. Oracle: the vision graph, byte for byte."""
    files = []
    for folder in (finished.source, finished.out):
        out = tmp_path / folder.name
        convert(str(folder), out, registry=registry, verify=False)
        files.append([(out / f"toy_vision.onnx{end}").read_bytes() for end in ("", ".data")])
    assert files[0] == files[1]


def test_a_nested_layout_says_so_in_both_places(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path, python: Path
) -> None:
    """For loaders of the whole, and builders that look at the language model's part alone."""
    run(python, checkpoints["nested"])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"] == config["llm_config"]["quantization_config"]
    keys = load_file(tmp_path / "out/model.safetensors").keys()
    assert "language_model.model.layers.1.mlp.up_proj.qweight" in keys
    assert "language_model.lm_head.weight" in keys


# What goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "evidence"),
    [
        ({"bits": 3}, "--bits 3 is not offered\nchoose from 4, 8"),
        ({"device": "npu"}, "--device npu is not offered"),
    ],
)
def test_what_is_not_offered_is_refused_before_any_work(
    refusal: Refusal, tmp_path: Path, settings: dict[str, Any], evidence: str
) -> None:
    """No Python is even looked for. Oracle: none is there."""
    assert evidence in refusal(UsageError, tmp_path / "nowhere", **settings)


@pytest.mark.parametrize("named", [True, False])
def test_a_python_without_the_library_is_refused(
    refusal: Refusal, tmp_path: Path, named: bool
) -> None:
    """The message holds the commands that help. Oracle: the stand-in denies, or our own does."""
    python = standin_python(tmp_path, lacks_library=1) if named else None
    message = refusal(ToolchainError, python)
    assert str(python or sys.executable) in message
    assert "make gptq-env" in message
    assert "gptqmodel==7.6.0" in message


def test_modules_in_the_users_folder_do_not_hide_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a ``types.py`` nor a ``gptqmodel.py``. Oracle: what this Python really has."""
    for name in ("types.py", "gptqmodel.py"):
        (tmp_path / name).write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(LIBRARY))
    assert find_python(Path(sys.executable)) == Path(sys.executable)
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(ToolchainError, match="gptqmodel is not installed in"):
        find_python(Path(sys.executable))


def test_a_program_that_is_not_there_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    """Oracle: the path given."""
    nowhere = tmp_path / "nowhere"
    assert f"no program {nowhere}" in refusal(ToolchainError, nowhere)


def test_a_folder_that_exists_is_left_alone(refusal: Refusal, tmp_path: Path, python: Path) -> None:
    """Oracle: its content."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "exists already" in refusal(BundleError, python)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_checkpoint_without_tokenizer_is_refused(
    refusal: Refusal, checkpoints: dict[str, Path], tmp_path: Path, python: Path
) -> None:
    """Calibrating on anything but its tokens would spoil it. Oracle: the files left out."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((checkpoints["flat"] / name).read_bytes())
    assert "has no tokenizer" in refusal(CheckpointError, python, folder=folder)


def test_a_disk_without_room_is_refused(
    refusal: Refusal, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a disk that says it has 100 kB left; the toy takes three times that."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    assert "0.0 GB are free" in refusal(BudgetError, python)


def test_a_failing_worker_is_quoted(refusal: Refusal, tmp_path: Path) -> None:
    """With its last lines and the log. Oracle: what the stand-in prints before it ends with 3."""
    then = 'sys.stderr.write("first\\nsingular matrix\\n"); sys.exit(3)'
    message = refusal(ToolchainError, standin_python(tmp_path, then=then))
    assert "the worker exited with 3" in message
    assert message.index("first") < message.index("singular matrix")
    assert (tmp_path / "out.log").read_text() == "first\nsingular matrix\n"


SCALES = "model.layers.1.mlp.up_proj.scales"


@pytest.mark.parametrize(
    ("does", "evidence"),
    [
        ({"then": "os.kill(os.getpid(), 9)"}, ["was killed by SIGKILL", "for lack of memory"]),
        ({"change": f"del found['{SCALES}']"}, [f"no `{SCALES}` of shape [2, 128]", "wrote: none"]),
        (
            {"change": f"found['{SCALES}'] = numpy.zeros((4, 128), numpy.float16)"},
            [f"no `{SCALES}` of shape [2, 128]", "it wrote: [4, 128]"],
        ),
        ({"error": "0.51"}, ["'w' came back with a relative error of"]),
        ({"error": "float('nan')"}, ["worst_weight_error: nan is not a finite number"]),
    ],
    ids=["killed", "a tensor missing", "groups of another size", "far off", "not a number"],
)
def test_an_unfit_answer_is_refused(
    refusal: Refusal, tmp_path: Path, does: dict[str, str], evidence: list[str]
) -> None:
    """By a worker killed as the kernel does for lack of memory, or that packs or reads wrongly.

    Oracle: what the stand-in was told to do.
    """
    message = refusal(ToolchainError, standin_python(tmp_path, **does))
    for text in evidence:
        assert text in message


class Interrupting(Recorder):
    """Interrupted as soon as the worker speaks."""

    def say(self, message: str) -> None:
        super().say(message)
        if message.startswith("process "):
            raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    """Neither files but the log nor the worker. Oracle: the folder, and the worker's process id."""
    progress = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run(standin_python(tmp_path, then="time.sleep(600)"), progress=progress)
    assert {path.name for path in tmp_path.iterdir()} == {"python", "out.log"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(progress.said[-1].removeprefix("process ")), 0)


def test_what_a_killed_run_left_is_cleared_away(run: Run, tmp_path: Path, python: Path) -> None:
    """Oracle: the scratch folder that it would have left."""
    left = tmp_path / ".axcore.99999999.partial"  # nobody holds its lock
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    run(python)
    assert {path.name for path in tmp_path.iterdir()} == {"python", "out"}
    assert (tmp_path / "out/model.safetensors").read_bytes()[:4] != b"half"


def test_two_runs_do_not_share_a_folder(refusal: Refusal, tmp_path: Path, python: Path) -> None:
    """Oracle: a lock held as another process holds it."""
    with FileLock(tmp_path / ".out.lock"):
        assert "another axcore process is writing" in refusal(BundleError, python)


def test_little_text_is_warned_of(run: Run, tmp_path: Path) -> None:
    """Fewer tokens than a layer has inputs. Oracle: 127 of them against the toy's 128."""
    progress = run(standin_python(tmp_path, tokens=127))
    assert "127 tokens are too few for the 128 inputs" in progress.warned[0]


def test_shards_stay_readable_by_others(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path, python: Path
) -> None:
    """A checkpoint of two shards with an index. Oracle: safetensors reads what comes of it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tensors = load_file(checkpoints["flat"] / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((checkpoints["flat"] / name).read_bytes())
    run(python, folder)
    written = load_file(tmp_path / "out/model.safetensors")
    assert len(written) == len(tensors) + 3 * MATRICES
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("then", "evidence"),
    [
        ('print("not JSON", flush=True)', "the worker said"),
        ("print([1], flush=True)", "the worker said '[1]"),
        ("print('true', flush=True)", "the worker said 'true"),
        ("print('\"' + 'x' * 10**6, flush=True)", "the worker said"),
        ("os.mkfifo(order['report']); sys.exit(0)", "a pipe or device"),
        ("open(order['report'], 'w').write('[]'); sys.exit(0)", "not of type Mapping"),
        ("open(order['report'], 'w').write('{}'); sys.exit(0)", "calibration_tokens: missing"),
        ("os.truncate(os.open(order['report'], 66), 1 << 30); sys.exit(0)", "at most"),
    ],
)
def test_what_a_worker_says_is_typed(
    refusal: Refusal, tmp_path: Path, then: str, evidence: str
) -> None:
    """It runs libraries of others: lines and reports of another kind are refused, by name."""
    assert evidence in refusal(ToolchainError, standin_python(tmp_path, then=then))


def test_a_link_out_of_the_checkpoint_is_not_copied(
    refusal: Refusal, checkpoints: dict[str, Path], tmp_path: Path, python: Path
) -> None:
    """Notes of a checkpoint that are a file of the user's. Oracle: the message."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["flat"], folder)
    (folder / "notes.md").symlink_to("/etc/passwd")
    message = refusal(CheckpointError, standin_python(tmp_path), folder=folder)
    assert "`notes.md` cannot be copied: it is a link to a file outside" in message
