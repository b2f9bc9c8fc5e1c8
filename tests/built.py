"""A tiny bundle whose language model was built by the embedded toolchain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import axcore

from .bundles import IMAGES, convert

HEIGHT, WIDTH, ROWS = 56, 84, 6  # an image is 6 tokens
CHUNK, CACHE, HISTORIES = 64, 300, (64, 128)
LENGTHS: dict[str, Any] = {
    "height": HEIGHT, "width": WIDTH,
    "prefill_len": CHUNK, "kv_cache_len": CACHE, "last_kv_cache_len": HISTORIES,
}  # fmt: skip
LIMIT = CHUNK + HISTORIES[-1]  # tokens of the longest prompt
LAYER, HEAD = "qwen2_5_vl_p64_l{}_together.onnx", "qwen2_5_vl_post.onnx"
TABLE = "model.embed_tokens.weight.bfloat16.bin"
IMAGE = sorted(IMAGES.glob("*.jpg"))[0]


@pytest.fixture(scope="session")
def finished(once: Callable[..., Path], checkpoint: Path) -> Path:
    """The bundle. Tests do not change it."""

    def make(out: Path) -> None:
        convert(checkpoint, out, verify=False, **LENGTHS)
        axcore.build(out, toolchain="onnx")

    return once("finished", make)


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to change."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


def message(text: str, *images: Any) -> dict[str, Any]:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def change_groups(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the shape groups of a layer model: what builds of other lengths differ in."""
    model = onnx.load(path, load_external_data=False)
    (entry,) = (prop for prop in model.metadata_props if prop.key == "axcore.shape_groups")
    groups = json.loads(entry.value)
    for group in groups:
        change(group)
    entry.value = json.dumps(groups)
    path.write_bytes(model.SerializeToString())


# A backend that is `onnx`, but for a Ctrl-C before the language model is called that many times.
INTERRUPTING = """

from axcore import Availability, Choice, ToolchainError, hookimpl
from axcore.runtime.backends import EngineBackend


class Interrupted:
    def __init__(self, model, patience):
        self.model, self.patience = model, patience

    def __getattr__(self, name):
        return getattr(self.model, name)

    def prefill(self, *arguments):
        self.wait()
        return self.model.prefill(*arguments)

    def decode(self, *arguments):
        self.wait()
        return self.model.decode(*arguments)

    def wait(self):
        self.patience -= 1
        if self.patience == 0:
            raise KeyboardInterrupt  # a process started in the background ignores the signal


class Impatient:
    name = "impatient"
    options = {"patience": Choice(("1", "5")), "mood": Choice(())}

    def availability(self):
        return Availability(True, "a stand-in for a user")

    def reads(self, name):
        return EngineBackend("onnx", ".onnx").reads(name)

    def vision(self, deployment, options):
        if "mood" in options:
            raise ToolchainError(f"opened with {options}", hint="stay calm")
        return EngineBackend("onnx", ".onnx").vision(deployment, {})

    def language(self, deployment, options):
        model = EngineBackend("onnx", ".onnx").language(deployment, {})
        return Interrupted(model, int(options["patience"]))


@hookimpl
def backends():
    return [Impatient()]
"""


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an installed backend that stands in for a user who presses Ctrl-C."""
    site = tmp_path / "site"
    info = site / "axcore_impatient-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: axcore-impatient\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[axcore]\nimpatient = axcore_impatient\n")
    (site / "axcore_impatient.py").write_text(INTERRUPTING)
    monkeypatch.syspath_prepend(site)
    return "impatient"
