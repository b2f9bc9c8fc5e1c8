"""A bundle to build, and a stand-in for the tool that builds it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from axcore import BuildRequest, Calibration, GraphFile, LlmBuildArgs, Port
from axcore.testing import Recorder
from axcore.toolchains.pulsar2 import Pulsar2

if TYPE_CHECKING:
    from collections.abc import Callable

STANDIN = Path(__file__).with_name("standin_pulsar2.py")
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)
LAYERS = [f"foo_vl_text_p320_l{layer}_together.axmodel" for layer in range(3)]
RESULT = "Foo-VL-3B_vision.build.json"
LLM_RESULT = "llm.build.json"
MADE = ["Foo-VL-3B_vision.axmodel", RESULT, *LAYERS, "foo_vl_text_post.axmodel", LLM_RESULT]


@dataclass
class Standin:
    """The stand-in for Pulsar2, placed in a folder of its own."""

    path: Path

    def set(self, **settings: Any) -> None:
        settings = {"generation": "llm_build", **settings}
        self.path.with_name("settings.json").write_text(json.dumps(settings))

    def calls(self) -> list[list[str]]:
        """Arguments of every build so far; questions for help and version are left out."""
        return [call["args"] for call in self.journal() if call["args"] != ["version"]]

    def journal(self) -> list[dict[str, Any]]:
        journal = self.path.with_name("journal.jsonl")
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the lock of the real tool is no concern of ours
    path = tmp_path / "tools of ours" / "pulsar2"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{STANDIN.read_text()}")
    path.chmod(0o755)
    made = Standin(path)
    made.set()
    return made


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def graph() -> GraphFile:
    """A made-up graph that is calibrated like the published one with eight images."""
    return GraphFile(
        stem="Foo-VL-3B_vision",
        inputs=(Port("hidden_states", (1, 3, 1024, 392)),),
        outputs=(Port("hidden_states_out", (256, 2048)),),
        calibration=Calibration(
            format="Image",
            mean=CLIP_MEAN,
            std=CLIP_STD,
            tensor_format="BGR",
            src_dtype="U8",
            src_layout="NHWC",
            size=8,
        ),
        archive="hidden_states.tar",
        samples=20,
    )


@pytest.fixture
def request_(graph: GraphFile, tmp_path: Path) -> BuildRequest:
    checkpoint = tmp_path / "check point's"
    checkpoint.mkdir()
    config = {"model_type": "foo_vl_text", "num_hidden_layers": 3}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    return BuildRequest(
        model="foo-vl-3b",
        checkpoint=str(checkpoint),
        options={"chip": "AX650"},
        task="image",
        graphs=(graph,),
        llm=LlmBuildArgs(prefill_len=320, kv_cache_len=1023),
        decoder_layers=3,
    )


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[[BuildRequest], Path]:
    """Make a folder as a conversion leaves it, with a space in its name."""

    def make(request: BuildRequest) -> Path:
        folder = tmp_path / "a bundle"
        folder.mkdir(exist_ok=True)
        for graph in request.graphs:
            (folder / f"{graph.stem}.onnx").write_bytes(b"graph")
            (folder / f"{graph.stem}.onnx.data").write_bytes(b"weights")
            if graph.samples:
                (folder / graph.archive).write_bytes(b"samples")
        for name, text in Pulsar2().prepare(request).items():
            (folder / name).write_text(text)
        return folder

    return make


@pytest.fixture
def bundle(make_bundle: Callable[[BuildRequest], Path], request_: BuildRequest) -> Path:
    return make_bundle(request_)


@pytest.fixture
def two_graphs(request_: BuildRequest) -> BuildRequest:
    second = replace(request_.graphs[0], stem="second_graph", archive="second.tar")
    return replace(request_, graphs=(*request_.graphs, second))
