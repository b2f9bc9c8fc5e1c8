"""A bundle of small graphs, and stand-ins for what only a machine with a card has."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from axcore_toolchain_ascend import cann as cann_engine
from onnx import TensorProto, helper

from axcore import BuildRequest, Calibration, GraphFile, LlmBuildArgs, Port, Registry
from axcore.testing import Recorder

from . import standin_ais_bench

STANDIN = Path(__file__).with_name("standin_atc.py")
SOC = {"soc-version": "Ascend310P3"}
CPU = "CPUExecutionProvider"
FAMILIES = ("internvl", "minicpmv", "qwen25vl")


@dataclass
class Standin:
    """The stand-in for ``atc``, placed in a folder of its own."""

    path: Path

    def set(self, **settings: Any) -> None:
        self.path.with_name("settings.json").write_text(json.dumps(settings))

    def calls(self) -> list[list[str]]:
        """Arguments of every call so far."""
        journal = self.path.with_name("journal.jsonl")
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [json.loads(line) for line in lines]

    def models(self) -> list[str]:
        """Value of ``--model`` of every call so far."""
        return [flags_of(call)["model"] for call in self.calls()]


def flags_of(call: list[str]) -> dict[str, str]:
    """Return the flags of a call by name."""
    return dict(word.removeprefix("--").split("=", 1) for word in call)


class StandinRuntime(SimpleNamespace):
    """A stand-in for ``onnxruntime-cann``: ONNX Runtime on the CPU under the provider's name.

    Attributes:
        asked: Providers of every session.
        starts: Whether the provider comes up in a session.
    """

    def __init__(self, starts: bool = True) -> None:
        super().__init__(asked=[], starts=starts)

    def get_available_providers(self) -> list[str]:
        return [cann_engine.PROVIDER, CPU]

    def InferenceSession(self, path: str, providers: list[Any]) -> Any:  # noqa: N802
        self.asked.append(providers)
        session = onnxruntime.InferenceSession(path, providers=[CPU])
        used = [cann_engine.PROVIDER, CPU] if self.starts else [CPU]
        return SimpleNamespace(
            get_inputs=session.get_inputs,
            get_outputs=session.get_outputs,
            run=session.run,
            get_providers=lambda: used,
        )


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> StandinRuntime:
    made = StandinRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    return made


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def cann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of CANN, as its set_env.sh leaves it."""
    home = tmp_path / "cann"
    info = home / "x86_64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)
    info.write_text("package_name=Ascend-cann-toolkit\nversion=8.2.RC1\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(home))
    return info


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cann: Path) -> Standin:
    """The stand-in for ``atc``, first on PATH."""
    path = tmp_path / "tools of ours" / "atc"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{STANDIN.read_text()}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    made = Standin(path)
    made.set()
    return made


@pytest.fixture
def ais_bench(monkeypatch: pytest.MonkeyPatch) -> list[standin_ais_bench.InferSession]:
    """Put the stand-in in place of ais_bench; returns the sessions as they are made."""
    monkeypatch.setattr(standin_ais_bench.InferSession, "made", [])
    for name in ("ais_bench", "ais_bench.infer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "ais_bench.infer.interface", standin_ais_bench)
    return standin_ais_bench.InferSession.made


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without variables that the plugin sets, and lose those it does set."""
    from axcore_toolchain_ascend import environment

    for name in environment("performance"):
        monkeypatch.setenv(name, "")  # makes pytest restore what was there
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The families and this plugin, whatever else is installed."""
    named = {name: f"axcore_plugins_{name}" for name in FAMILIES}
    named["ascend"] = "axcore_toolchain_ascend"
    return Registry([EntryPoint(name, module, "axcore") for name, module in named.items()])


@pytest.fixture
def graph() -> GraphFile:
    """A made-up graph of two inputs."""
    return GraphFile(
        stem="tower",
        inputs=(Port("pixel_values", (1, 3, 4, 6)), Port("position_ids", (1, 24), "int64")),
        outputs=(Port("features", (1, 3, 4, 6)), Port("ids", (1, 24), "int64")),
        calibration=Calibration(),
        archive="pixel_values.tar",
        samples=0,
    )


@pytest.fixture
def request_(graph: GraphFile) -> BuildRequest:
    second = replace(graph, stem="it's a resampler", inputs=graph.inputs[:1])
    second = replace(second, outputs=graph.outputs[:1])
    return BuildRequest(
        model="foo-vl-3b",
        checkpoint="checkpoint",
        options=SOC,
        task="image",
        graphs=(graph, second),
        llm=LlmBuildArgs(prefill_len=320, kv_cache_len=1023),
        decoder_layers=3,
    )


@pytest.fixture
def bundle(request_: BuildRequest, tmp_path: Path) -> Path:
    """A folder as a conversion leaves it, with a space in its name."""
    folder = tmp_path / "a bundle"
    folder.mkdir()
    for each in request_.graphs:
        write_model(each, folder / f"{each.stem}.onnx")
    return folder


def write_model(graph: GraphFile, path: Path) -> None:
    """Write a model that doubles float32 and passes on everything else."""
    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    types |= {"int64": TensorProto.INT64, "bfloat16": TensorProto.BFLOAT16}
    nodes = [
        helper.make_node("Add", [given.name, given.name], [made.name])
        if given.dtype == "float32"
        else helper.make_node("Identity", [given.name], [made.name])
        for given, made in zip(graph.inputs, graph.outputs, strict=True)
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(p.name, types[p.dtype], p.shape) for p in side]
        for side in (graph.inputs, graph.outputs)
    )
    made = helper.make_graph(nodes, graph.stem, inputs, outputs)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(made, opset_imports=[opset], ir_version=8), path)
