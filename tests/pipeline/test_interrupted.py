"""Runs that end too soon: killed, failing, without room, or two at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from axcore import BudgetError, BundleError, ImageError, Registry, VerificationError

from ..bundles import (
    EMBEDDING,
    IMAGES,
    MODEL,
    change_tensors,
    command_line,
    contents,
    convert,
    environment,
    largest_file,
    raised,
    shard_of,
)

# In the order in which a conversion prints them.
MOMENTS = [
    "write Qwen2.5-VL-3B-Instruct_vision.onnx (",
    "verify vision (",
    "calibration of vision (",
    "embedding (",
    "toolchain: done",
]

# The command, killed from within when it prints a line that begins like the first argument: from
# outside, the fast steps would be over before the signal comes.
MORTAL = """
import os, signal, sys
from axcore import display
from axcore.cli import main

moment = sys.argv.pop(1)
say = display.Lines.say
def last_words(self, message):
    say(self, message)
    if message.startswith(moment):
        os.kill(os.getpid(), signal.SIGKILL)
display.Lines.say = last_words
main()
"""

# A family whose graphs are wrong while PyTorch is right: the exporter, and it alone, sees windowed
# blocks turn the sign of what they return.
DRIFTING_FAMILY = """
import torch
import axcore_plugins_qwen25vl as right
from axcore import hookimpl
from axcore_plugins_qwen25vl import export_vision, model_cards

@hookimpl
def patch_attention(stage):
    patched = right.patch_attention(stage)
    if stage.kind == "window_block":
        kind = type(patched.module)
        def forward(self, state):
            return kind.forward(self, state) * (-1 if torch.compiler.is_compiling() else 1)
        patched.module.__class__ = type("Wrong", (kind,), {"forward": forward})
    return patched
"""


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment()
    )


def kill_at(moment: str, checkpoint: Path, out: Path) -> bool:
    """Begin the conversion that made `converted` and kill it; say whether it came to that."""
    done = run(["-c", MORTAL, moment, *command_line(checkpoint, out)])
    return done.returncode == -signal.SIGKILL


def test_killed_everywhere_it_ends_in_the_same_bytes(
    converted: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """`kill -9` in every phase, one after the other in one folder; then once to the end.

    Oracle: the bundle of an undisturbed run. Until the end there is nothing to be mistaken for one.
    """
    out = tmp_path / "out"
    for moment in MOMENTS:
        assert kill_at(moment, checkpoint, out), moment
        assert not (out / "axcore.json").exists(), moment
    done = run(["-m", "axcore", *command_line(checkpoint, out)])
    assert done.returncode == 0, done.stderr
    assert "export-vision: kept" in done.stderr
    assert contents(out) == contents(converted)
    assert not (out / ".axcore/steps").exists()


def test_killed_over_an_earlier_bundle_loses_nothing(
    bundle: Path, converted: Path, checkpoint: Path, own_checkpoint: Path
) -> None:
    """Another embedding is on its way into the folder. Oracle: the earlier bundle's bytes."""
    change_tensors(shard_of(own_checkpoint, EMBEDDING), raised(EMBEDDING))
    assert kill_at("embedding (", own_checkpoint, bundle)
    assert contents(bundle) == contents(converted)
    convert(checkpoint, bundle)
    assert contents(bundle) == contents(converted)


def test_a_graph_that_drifts_is_not_published(
    bundle: Path,
    converted: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A family whose graphs are wrong. Oracle: the stage it spoils, the earlier bundle's bytes."""
    (tmp_path / "drifting_family.py").write_text(DRIFTING_FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry([EntryPoint("drifting", "drifting_family", "axcore")])
    with pytest.raises(VerificationError, match=r"first: cosine -1\.0.*`blocks\.0`") as caught:
        convert(checkpoint, bundle, registry=registry)
    assert "--opset" in caught.value.hint
    assert contents(bundle) == contents(converted)


def test_bad_images_leave_the_earlier_bundle(
    bundle: Path, converted: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """A broken JPEG among good ones. Oracle: its name, and the earlier bundle's bytes."""
    bad = tmp_path / "broken.jpg"
    bad.write_bytes((IMAGES / "cat.jpg").read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        convert(checkpoint, bundle, images=[IMAGES, bad])
    assert contents(bundle) == contents(converted)


def test_a_full_disk_leaves_the_earlier_bundle(
    bundle: Path, converted: Path, own_checkpoint: Path
) -> None:
    """No file may grow beyond 50 kB, and another embedding wants 66 kB.

    Oracle: the earlier bundle's bytes. With room again the same request succeeds.
    """
    change_tensors(shard_of(own_checkpoint, EMBEDDING), raised(EMBEDDING))
    with pytest.raises(BudgetError, match="File too large") as caught, largest_file(50_000):
        convert(own_checkpoint, bundle)
    assert "make room" in caught.value.hint
    assert contents(bundle) == contents(converted)
    convert(own_checkpoint, bundle)
    table = f"{EMBEDDING}.bfloat16.bin"
    assert contents(bundle)[table] != contents(converted)[table]


def test_a_first_run_that_fails_leaves_nothing_outside_its_state(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A full disk in an empty folder. Oracle: the folder."""
    with pytest.raises(BudgetError), largest_file(300_000):
        convert(checkpoint, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".axcore"]


def test_a_folder_in_use_is_refused(bundle: Path, converted: Path, checkpoint: Path) -> None:
    """Another process holds it, and is killed. Oracle: its id, and the earlier bundle's bytes."""
    code = (
        "import sys; from pathlib import Path; from axcore.workspace import Workspace\n"
        f"with Workspace(Path({str(bundle)!r}), {MODEL!r}).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BundleError, match=f"process id: {holder.pid}"):
            convert(checkpoint, bundle, prefill_len=384)
        holder.kill()
    assert contents(bundle) == contents(converted)
    convert(checkpoint, bundle, prefill_len=384)
