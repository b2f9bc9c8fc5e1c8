"""Traced graphs in the user's cache: the same bytes, a key for every input, nothing trusted."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from axcore import Component, Port, Silent, Stage
from axcore.graph import cache, identity, kept, trace
from axcore.graph.export import export_component
from axcore.graph.stitch import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from axcore.checkpoint import Checkpoint

INSTALLED = Path(__file__).parent / "installed"
STATE = (((2, 4, 3), torch.float32),)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a plugin that is installed."""
    monkeypatch.setenv("AXCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(INSTALLED)
    return tmp_path / "cache" / "graphs"


def plugin() -> Any:
    """The plugin's module."""
    return importlib.import_module("kept_stages")


def scaled(**attributes: Any) -> Any:
    """The plugin's module `Scaled`, with some attributes changed."""
    module = plugin().Scaled()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def key(module: nn.Module | None = None) -> str | None:
    """Return a module's key."""
    return identity.identity(module or scaled(), [STATE])


def traced(module: nn.Module | None = None, **changes: Any) -> bytes:
    """Trace a stage; return all of the graph."""
    given = {"state": STATE, "dtype": torch.float32, "opset": 17, **changes}
    kind = trace.trace(Stage("stage", module or scaled()), **given)
    return repr((kind.outputs, kind.orders)).encode() + ir.to_proto(kind.model).SerializeToString()


def entries(folder: Path) -> list[Path]:
    """Return the files of the cache."""
    return sorted(folder.glob("*"))


class Traced(Exception):
    """Raised where something would be traced."""


@pytest.fixture
def untraceable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, tracing raises."""

    def forbid() -> None:
        def fail(*_: Any) -> Any:
            raise Traced

        monkeypatch.setattr(trace, "_traced", fail)

    return forbid


@pytest.fixture(scope="module")
def content() -> bytes:
    """The graph of the plugin's stage as it is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(INSTALLED)
        return trace._traced(Stage("stage", plugin().Scaled()), STATE, torch.float32, 17, ())


# The same graph ----------------------------------------------------------------------------------


def test_a_kept_graph_is_the_traced_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, untraceable: Callable[[], None]
) -> None:
    """Oracle: the graph traced with the cache switched off, which writes nothing either."""
    monkeypatch.setenv(cache.SWITCH, "1")
    expected = traced()
    assert not folder.exists()
    monkeypatch.delenv(cache.SWITCH)
    assert traced() == expected
    (entry,) = entries(folder)
    written = entry.read_bytes()
    untraceable()
    assert traced() == expected
    assert entry.read_bytes() == written


def test_files_are_the_same_with_and_without_the_cache(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    untraceable: Callable[[], None],
) -> None:
    """Stages of a kind, exported as one file. Oracle: the files of an export without a cache."""

    def exported(name: str) -> list[bytes]:
        (tmp_path / name).mkdir()
        keys = {"weight": "tower.mix.0.q.weight", "bias": "tower.mix.0.norm.bias"}
        stages = [Stage(f"s{i}", nn.Linear(24, 24, device="meta"), keys, "kind") for i in range(2)]
        port = functools.partial(Port, shape=(2, 24))
        ports = (port("x"),), (port("y"),)
        tracer = Tracer(lambda stage: stage, torch.float32, 17)
        export_component(
            Component("c", "c", tuple(stages), *ports), checkpoint, tracer, tmp_path / name,
            dtype="float32", cuts=(), progress=Silent(),
        )  # fmt: skip
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    monkeypatch.setenv(cache.SWITCH, "1")
    expected = exported("without")
    monkeypatch.delenv(cache.SWITCH)
    assert exported("first") == expected
    untraceable()
    assert exported("second") == expected


def test_dynamic_axes_and_another_weight_order_are_kept(untraceable: Callable[[], None]) -> None:
    """As layer models are traced. Oracle: what was traced."""
    expected = traced(dynamic=[(0,)])
    untraceable()
    assert traced(dynamic=[(0,)]) == expected


def test_keys_are_equal_in_all_processes() -> None:
    """Whatever order sets have there. Oracle: the key made here."""
    code = (
        "import kept_stages, torch; from axcore.graph.identity import identity;"
        "print(identity(kept_stages.Scaled(), [(((2, 4, 3), torch.float32),)]))"
    )
    paths = os.pathsep.join([str(INSTALLED), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": paths}
    told = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert told.strip() == key()


# Keys --------------------------------------------------------------------------------------------


def _shared() -> nn.Module:
    first = nn.Linear(3, 3, device="meta")
    return nn.Sequential(first, first)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "as it is": scaled,
    "another class": lambda: plugin().Other(),
    "a setting": lambda: scaled(settings=plugin().Settings(scale=3.0)),
    "a setting of equal value, another type": lambda: scaled(settings=plugin().Settings(scale=2)),
    "a setting in a list": lambda: scaled(settings=plugin().Settings(names=["a", "c"])),
    "text that is joined otherwise": lambda: scaled(settings=plugin().Settings(names=["a, b"])),
    "another function": lambda: scaled(turn=torch.abs),
    "a function with an argument": lambda: scaled(turn=functools.partial(torch.add, other=1)),
    "another argument": lambda: scaled(turn=functools.partial(torch.add, other=2)),
    "a set": lambda: scaled(kinds={"one", "two"}),
    "a byte of a constant": lambda: scaled(shift=torch.arange(5.0).nextafter(torch.ones(5))),
    "the sign of a zero": lambda: scaled(
        shift=torch.arange(5.0) * torch.tensor([-1.0, 1, 1, 1, 1])
    ),
    "a constant's type": lambda: scaled(shift=torch.arange(5)),
    "a constant's shape": lambda: scaled(shift=torch.arange(5.0)[None]),
    "a parameter's shape": lambda: scaled(linear=nn.Linear(3, 5, bias=False, device="meta")),
    "a parameter's type": lambda: scaled(linear=nn.Linear(3, 5, device="meta").half()),
    "a module in another place": lambda: nn.Sequential(nn.Identity(), scaled()),
    "two modules": lambda: nn.Sequential(*(nn.Linear(3, 3, device="meta") for _ in range(2))),
    "one module twice": _shared,
    "evaluation": lambda: scaled().eval(),
    "a hook": lambda: _hooked(),
}


def _hooked() -> nn.Module:
    module: nn.Module = scaled()
    module.register_forward_hook(plugin().doubled)
    return module


def test_another_module_has_another_key() -> None:
    """Every change of a module that its graph may depend on. Oracle: no two keys are equal."""
    keys = {name: key(make()) for name, make in MODULES.items()}
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys)
    del keys["a hook"]  # torch numbers hooks in the order in which they are added
    assert {name: key(MODULES[name]()) for name in keys} == keys


@pytest.mark.parametrize(
    "changes",
    [
        {"state": (((3, 4, 3), torch.float32),)},
        {"state": (((2, 4, 3), torch.float64),), "dtype": torch.float64},
        {"dtype": torch.float64, "state": (((2, 4, 3), torch.float64),), "opset": 18},
        {"opset": 18},
        {"dynamic": [(0,)]},
        {"dynamic": [()]},
    ],
)
def test_another_request_is_traced(
    changes: dict[str, Any], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shape, dtype, operator set, dynamic axes. Oracle: nothing is found in the cache."""
    monkeypatch.setattr(trace, "_traced", lambda *_: content)
    traced()

    def fail(*_: Any) -> Any:
        raise Traced

    monkeypatch.setattr(trace, "_traced", fail)
    traced()
    with pytest.raises(Traced):
        traced(**changes)


def test_other_code_or_tools_are_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of any tool, another state of axcore. Oracle: no two keys are equal."""
    keys = [key()]
    versions, digest = identity.versions, identity.code_digest
    for tool in versions():
        monkeypatch.setattr(identity, "versions", lambda t=tool: {**versions(), t: "0.0"})
        keys.append(key())
    monkeypatch.setattr(identity, "versions", versions)
    for package in ("axcore", "kept_stages"):
        identity._source.cache_clear()
        monkeypatch.setattr(
            identity, "code_digest", lambda name, p=package: digest(name) + "x" * (name == p)
        )
        keys.append(key())
    identity._source.cache_clear()
    assert len(set(keys)) == len(versions()) + 3


@pytest.mark.parametrize(
    "module",
    [
        lambda: scaled(turn=lambda x: x),
        lambda: type("Local", (plugin().Scaled,), {"forward": lambda self, x: x})(),
        lambda: plugin().Slotted(),
        lambda: scaled(settings=plugin().Telling()),
        lambda: scaled(settings=iter([1])),
        lambda: scaled(kinds={plugin().Settings}),
        lambda: scaled(settings=hashlib.sha256()),
        lambda: scaled(shift=torch.eye(5).to_sparse()),
    ],
    ids=["lambda", "local class", "slots", "pickled", "iterator", "objects", "C", "sparse"],
)
def test_what_cannot_be_told_has_no_key(module: Callable[[], nn.Module]) -> None:
    """Oracle: None, so that such stages are traced each time, as the next test says."""
    assert key(module()) is None


def test_a_stage_without_a_key_is_traced_each_time(folder: Path) -> None:
    """Oracle: no entry, and two functions under one name give two graphs."""
    first, second = (traced(scaled(turn=function)) for function in (lambda x: x, lambda x: x + 1))
    assert first != second
    assert not folder.exists()


# Entries -----------------------------------------------------------------------------------------


def _edited(change: Callable[[onnx.ModelProto], None]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        proto = onnx.ModelProto.FromString(content)
        change(proto)
        return bytes(proto.SerializeToString())

    return edit


def _external(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def _without_data(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = b"\0"


def _turned(proto: onnx.ModelProto) -> None:
    assert proto.metadata_props[0].value == '{"linear.weight": [1, 0]}'
    proto.metadata_props[0].value = '{"linear.weight": [0, 7]}'


def _unturned(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = '{"linear.weight": [0, 1]}'


def _other_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 9


def _other_operators(proto: onnx.ModelProto) -> None:
    proto.opset_import.add(domain="com.example", version=1)


def _other_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("state.0", 1, [2, 3]))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-9],
    "no protobuf": lambda content: b"\xff" * 300,
    "data in another file": _edited(_external),
    "data that end early": _edited(_without_data),
    "axes that there are not": _edited(_turned),
    "another order of axes": _edited(_unturned),
    "another input": _edited(_other_input),
    "other operators": _edited(_other_operators),
    "another output": _edited(_other_output),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_no_trace_could_have_made_is_refused(content: bytes, damage: str) -> None:
    """Whoever can write the cache can forge a checksum. Oracle: ValueError, and none before."""
    interface = trace._interface(Stage("stage", scaled()), STATE, torch.float32, ())
    kept.checked(content, interface, 17)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it is, it is traced again
        kept.checked(DAMAGE[damage](content), interface, 17)


@pytest.mark.parametrize("signed", [False, True], ids=["flipped", "forged"])
def test_a_damaged_entry_is_traced_again(folder: Path, signed: bool) -> None:
    """A bit that flipped, and a graph that another made. Oracle: the first graph, kept again."""
    expected = traced()
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    changed = DAMAGE["another input"](whole[32:])
    entry.write_bytes((cache._checksum(entry.stem, changed) if signed else whole[:32]) + changed)
    assert traced() == expected
    assert entry.read_bytes() == whole


def test_an_entry_of_another_key_is_not_taken(folder: Path) -> None:
    """Oracle: nothing is read where an entry was put under another name."""
    cache.write("a", b"graph")
    (entry,) = entries(folder)
    entry.rename(entry.with_stem("b"))
    assert cache.read("b") is None


def test_the_least_recently_used_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read counts as used, and what is too large is not kept. Oracle: the names left."""
    monkeypatch.setattr(cache, "GRAPHS_BYTES", 3 * cache._LEAST_BYTES)
    monkeypatch.setattr(cache, "GRAPH_BYTES", 100)
    for name in "abc":
        cache.write(name, name.encode())
    assert cache.read("a") == b"a"
    cache.write("large", bytes(101))
    cache.write("d", b"d")
    assert [path.stem for path in entries(folder)] == ["a", "c", "d"]


@pytest.mark.parametrize("place", ["file", "link", "sealed"])
def test_without_a_place_nothing_is_kept(
    tmp_path: Path, folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that cannot be used is no error. Oracle: nothing read, nothing written elsewhere."""
    root, elsewhere = folder.parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    if place == "file":
        root.write_text("")
    elif place == "link":
        root.mkdir()
        folder.symlink_to(elsewhere)
    else:
        monkeypatch.setenv("AXCORE_CACHE", "/proc/nobody")
    cache.write("a", b"graph")
    assert cache.read("a") is None
    cache.remove("a")
    assert list(elsewhere.iterdir()) == []


# The exporter's library --------------------------------------------------------------------------


def test_the_library_of_operators_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others who export get a library of their own. Oracle: calls of torch's function."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from axcore.graph import operators

    original, calls = ONNXRegistry.from_torchlib, []
    counted = classmethod(lambda cls, opset_version: calls.append(cls) or original(opset_version))
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", counted)
    monkeypatch.setattr(operators, "_read", {})
    traced()
    traced(plugin().Other())
    assert len(calls) == 1
    assert ONNXRegistry.__dict__["from_torchlib"] is counted
    assert ONNXRegistry.from_torchlib(18) is not ONNXRegistry.from_torchlib(18)


def test_a_torch_that_reads_it_otherwise_still_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for such a torch: its function takes another argument. Oracle: the usual graph."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    expected = traced()
    original = ONNXRegistry.from_torchlib
    monkeypatch.setenv(cache.SWITCH, "1")
    changed = classmethod(lambda cls, opset_version=18, more=None: original(opset_version))
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", changed)
    assert traced() == expected
