"""A checkpoint is quantised whole or not at all; gptqmodel itself is replaced by a stand-in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
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
    from types import ModuleType

    from axcore import Registry

MATRICES = 7 * toy.LAYERS


def test_only_matrices_of_the_language_model_change(
    finished: Finished, standin: ModuleType
) -> None:
    """Oracle: the stand-in's packing of the original weight; every other tensor bit by bit."""
    before = load_file(finished.source / "model.safetensors")
    after = load_file(finished.out / "model.safetensors")
    packed = {key for key, tensor in before.items() if ".layers." in key and tensor.ndim == 2}
    assert len(packed) == MATRICES == finished.result.matrices
    for key, tensor in before.items():
        if key in packed:
            assert key not in after
            for part, array in standin.pack(tensor.numpy(), 4, GROUP).items():
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
    sizes = [
        sum(
            t.nbytes
            for k, t in load_file(folder / "model.safetensors").items()
            if "visual" not in k
        )
        for folder in (finished.source, finished.out)
    ]
    assert [result.bytes_before, result.bytes_after] == sizes
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
    for name, folder in {"float": finished.source, "quantised": finished.out}.items():
        convert(str(folder), tmp_path / name, registry=registry, verify=False)
        files.append(
            [(tmp_path / name / f"toy_vision.onnx{s}").read_bytes() for s in ("", ".data")]
        )
    assert files[0] == files[1]


def test_a_nested_layout_says_so_in_both_places(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, python: Path
) -> None:
    """For loaders of the whole, and builders that look at the language model's part alone."""
    run(checkpoints["nested"], registry, tmp_path / "out", python)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"] == config["llm_config"]["quantization_config"]
    keys = load_file(tmp_path / "out/model.safetensors").keys()
    assert "language_model.model.layers.1.mlp.up_proj.qweight" in keys
    assert "language_model.lm_head.weight" in keys


# What goes wrong ---------------------------------------------------------------------------------


def run(
    folder: Path, registry: Registry, out: Path, python: Path | None, **settings: Any
) -> Recorder:
    progress = settings.pop("progress", None) or Recorder()
    settings = {"group_size": GROUP, **settings}
    quantize(str(folder), out, python=python, progress=progress, registry=registry, **settings)
    return progress


def refusal(
    kind: type[AxcoreError],
    folder: Path,
    registry: Registry,
    out: Path,
    python: Path | None,
    **settings: Any,
) -> str:
    """Return the message; nothing but a log may be there afterwards that was not before."""
    before = {path.name for path in out.parent.iterdir()}
    with pytest.raises(kind) as caught:
        run(folder, registry, out, python, **settings)
    assert caught.value.hint
    assert {path.name for path in out.parent.iterdir()} - before <= {f"{out.name}.log"}
    return caught.value.message + "\n" + caught.value.hint


@pytest.mark.parametrize(
    ("settings", "evidence"),
    [
        ({"bits": 3}, "--bits 3 is not offered\nchoose from 4, 8"),
        ({"device": "npu"}, "--device npu is not offered"),
        ({"group_size": 128}, "groups of 128 do not divide the 64 inputs"),
    ],
)
def test_what_is_not_offered_is_refused_before_any_work(
    checkpoints: dict[str, Path],
    registry: Registry,
    tmp_path: Path,
    settings: dict[str, Any],
    evidence: str,
) -> None:
    """No Python is even looked for. Oracle: none is there."""
    nowhere = tmp_path / "nowhere"
    folder = checkpoints["flat"]
    assert evidence in refusal(UsageError, folder, registry, tmp_path / "out", nowhere, **settings)


@pytest.mark.parametrize("named", [True, False])
def test_a_python_without_the_library_is_refused(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, named: bool
) -> None:
    """The message holds the commands that help. Oracle: the stand-in denies, or our own does."""
    python = standin_python(tmp_path, has_library=False) if named else None
    message = refusal(ToolchainError, checkpoints["flat"], registry, tmp_path / "out", python)
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


def test_a_program_that_is_not_there_is_refused(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    """Oracle: the path given."""
    nowhere = tmp_path / "nowhere"
    message = refusal(ToolchainError, checkpoints["flat"], registry, tmp_path / "out", nowhere)
    assert f"no program {nowhere}" in message


def test_a_folder_that_exists_is_left_alone(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, python: Path
) -> None:
    """Oracle: its content."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "exists already" in refusal(BundleError, checkpoints["flat"], registry, out, python)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_checkpoint_without_tokenizer_is_refused(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, python: Path
) -> None:
    """Calibrating on anything but its tokens would spoil it. Oracle: the files left out."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((checkpoints["flat"] / name).read_bytes())
    message = refusal(CheckpointError, folder, registry, tmp_path / "out", python)
    assert "has no tokenizer" in message


def test_a_disk_without_room_is_refused(
    checkpoints: dict[str, Path],
    registry: Registry,
    tmp_path: Path,
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: a disk that says it has 100 kB left; the toy takes three times that."""
    usage = os.statvfs(tmp_path).f_frsize, 0, 100_000
    kind = type("usage", (), dict(zip(("total", "used", "free"), usage, strict=True)))
    monkeypatch.setattr("shutil.disk_usage", lambda path: kind)
    message = refusal(BudgetError, checkpoints["flat"], registry, tmp_path / "out", python)
    assert "0.0 GB are free" in message


def test_a_failing_worker_is_quoted(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    """With its last lines and the log. Oracle: what the stand-in prints before it ends with 3."""
    then = 'sys.stderr.write("first\\nsingular matrix\\n"); sys.exit(3)'
    python = standin_python(tmp_path, then=then)
    message = refusal(ToolchainError, checkpoints["flat"], registry, tmp_path / "out", python)
    assert "the worker exited with 3" in message
    assert message.index("first") < message.index("singular matrix")
    assert (tmp_path / "out.log").read_text() == "first\nsingular matrix\n"


def test_a_worker_killed_for_memory_says_so(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    """Oracle: the stand-in kills itself as the kernel would."""
    python = standin_python(tmp_path, then="os.kill(os.getpid(), 9)")
    message = refusal(ToolchainError, checkpoints["flat"], registry, tmp_path / "out", python)
    assert "was killed by SIGKILL" in message
    assert "for lack of memory" in message


class Interrupting(Recorder):
    """Interrupted as soon as the worker speaks."""

    def say(self, message: str) -> None:
        super().say(message)
        if message.startswith("process "):
            raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing_behind(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    """Neither files but the log nor the worker. Oracle: the folder, and the worker's process id."""
    python = standin_python(tmp_path, then="time.sleep(600)")
    progress = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoints["flat"], registry, tmp_path / "out", python, progress=progress)
    assert {path.name for path in tmp_path.iterdir()} == {"python", "out.log"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(progress.said[-1].removeprefix("process ")), 0)


def test_what_a_killed_run_left_is_cleared_away(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, python: Path
) -> None:
    """Oracle: the scratch folder that it would have left."""
    left = tmp_path / ".out.99999999.partial"  # no process has that number
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    run(checkpoints["flat"], registry, tmp_path / "out", python)
    assert {path.name for path in tmp_path.iterdir()} == {"python", "out"}
    assert (tmp_path / "out/model.safetensors").read_bytes()[:4] != b"half"


def test_two_runs_do_not_share_a_folder(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, python: Path
) -> None:
    """Oracle: a lock held as another process holds it."""
    with FileLock(tmp_path / ".out.lock"):
        message = refusal(BundleError, checkpoints["flat"], registry, tmp_path / "out", python)
    assert "another axcore process is writing" in message


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        ("del found['model.layers.1.mlp.up_proj.scales']", "it wrote: none"),
        (
            "found['model.layers.1.mlp.up_proj.scales'] = numpy.zeros((4, 128), numpy.float16)",
            "it wrote: [4, 128]",
        ),
    ],
)
def test_an_unfit_answer_is_refused(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, change: str, evidence: str
) -> None:
    """A packed tensor missing, or of groups of another size. Oracle: the change made."""
    python = standin_python(tmp_path, change=change)
    message = refusal(ToolchainError, checkpoints["flat"], registry, tmp_path / "out", python)
    assert "no `model.layers.1.mlp.up_proj.scales` of shape [2, 128]" in message
    assert evidence in message


@pytest.mark.parametrize("error", ["0.51", "float('nan')"])
def test_weights_that_do_not_come_back_are_refused(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, error: str
) -> None:
    """Oracle: the error that the stand-in reports."""
    python = standin_python(tmp_path, error=error)
    message = refusal(ToolchainError, checkpoints["flat"], registry, tmp_path / "out", python)
    assert "`w` came back with a relative error of" in message


def test_little_text_is_warned_of(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    """Fewer tokens than a layer has inputs. Oracle: 127 of them against the toy's 128."""
    python = standin_python(tmp_path, tokens=127)
    progress = run(checkpoints["flat"], registry, tmp_path / "out", python)
    assert "127 tokens are too few for the 128 inputs" in progress.warned[0]


def test_shards_stay_readable_by_others(
    checkpoints: dict[str, Path], registry: Registry, tmp_path: Path, python: Path
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
    run(folder, registry, tmp_path / "out", python)
    written = load_file(tmp_path / "out/model.safetensors")
    assert len(written) == len(tensors) + 3 * MATRICES
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
