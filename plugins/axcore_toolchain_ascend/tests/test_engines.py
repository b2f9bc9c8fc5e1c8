"""The engines' surface and strictness, over stand-ins for ais_bench and for the CANN provider."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from axcore_toolchain_ascend import Ascend, cann, om

from axcore import BuildRequest, GraphFile, Port, ToolchainError
from axcore.testing import build_folder

from .conftest import CPU, StandinRuntime, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from axcore_toolchain_ascend.session import Session

    from .conftest import Standin

PIXELS = np.arange(72, dtype=np.float32).reshape(1, 3, 4, 6)
FEED: dict[str, Any] = {"pixel_values": PIXELS, "position_ids": np.arange(24)[None]}
ENGINES = {"ascend": (om, ".om"), "ascend-onnx": (cann, ".onnx")}


@pytest.fixture
def built(bundle: Path, request_: BuildRequest, standin: Standin) -> Path:
    """The bundle with its ``.om`` files."""
    build_folder(Ascend(), bundle, request_)
    return bundle


@pytest.fixture(params=["ascend", "ascend-onnx"])
def session(
    request: pytest.FixtureRequest, built: Path, ais_bench: object, runtime: object
) -> Session:
    """The tower in each engine, found as a runtime would find it."""
    module, suffix = ENGINES[request.param]
    opened: Session = module.InferenceSession(built / f"tower{suffix}")
    return opened


def test_the_surface_is_pyaxengines(session: Session) -> None:
    """Ports with ONNX's names, exact shapes and dtypes, in order. Oracle: the graph's ports."""
    ports = [(port.name, port.dtype, port.shape) for port in session.get_inputs()]
    f4, i8 = np.dtype("float32"), np.dtype("int64")
    assert ports == [("pixel_values", f4, (1, 3, 4, 6)), ("position_ids", i8, (1, 24))]
    assert [port.name for port in session.get_outputs(shape_group=0)] == ["features", "ids"]


def test_outputs_come_in_the_order_asked_for(session: Session) -> None:
    """Feeds come in any order, extra ones are ignored, views are made contiguous.

    Oracle: what the graph computes.
    """
    view = np.asfortranarray(PIXELS)
    feed = {"more": PIXELS, "position_ids": FEED["position_ids"], "pixel_values": view}
    features, ids = session.run(None, feed)
    np.testing.assert_array_equal(features, PIXELS * 2)
    np.testing.assert_array_equal(ids, FEED["position_ids"])
    swapped = session.run(["ids", "features"], FEED, None, 0)
    np.testing.assert_array_equal(swapped[1], features)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.run(None, {"pixel_values": PIXELS}), "`position_ids` is missing"),
        (lambda s: s.run(None, {**FEED, "pixel_values": PIXELS[0]}), r"not float32 \[3, 4, 6\]"),
        (lambda s: s.run(None, {**FEED, "pixel_values": PIXELS.astype("f8")}), "not float64"),
        (lambda s: s.run(["logits"], FEED), "logits"),
        (lambda s: s.run(None, FEED, None, 1), "no shape group 1"),
        (lambda s: s.get_inputs(1), "no shape group 1"),
    ],
)
def test_nothing_is_converted_or_guessed(
    session: Session, call: Callable[[Session], object], words: str
) -> None:
    """Oracle: pyaxengine's strictness, and the words of the message."""
    with pytest.raises(ValueError, match=words):
        call(session)


def test_a_provider_that_does_not_start_is_no_success(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would go on with the CPU. Oracle: the stand-in, told to do that."""
    monkeypatch.setitem(sys.modules, "onnxruntime", StandinRuntime(starts=False))
    with pytest.raises(ToolchainError, match=f"would run on {CPU}") as caught:
        cann.InferenceSession(bundle / "tower.onnx")
    assert "set_env.sh" in caught.value.hint


def test_without_a_card_each_engine_says_what_it_needs(built: Path) -> None:
    """Oracle: this machine, which has neither ais_bench nor the provider."""
    with pytest.raises(ToolchainError, match="needs ais_bench") as caught:
        om.InferenceSession(built / "tower.om")
    assert "aclruntime" in caught.value.hint
    with pytest.raises(ToolchainError, match=f"no {cann.PROVIDER} here, only .*{CPU}") as caught:
        cann.InferenceSession(built / "tower.onnx")
    assert "onnxruntime-cann" in caught.value.hint


@pytest.mark.parametrize("name", ["ascend", "ascend-onnx"])
def test_a_broken_file_is_named(
    tmp_path: Path, ais_bench: object, runtime: object, name: str
) -> None:
    """Oracle: a file that is none."""
    module, suffix = ENGINES[name]
    path = tmp_path / f"broken{suffix}"
    path.write_text("nothing")
    with pytest.raises(ToolchainError, match=r"broken.* cannot be loaded on device 0"):
        module.InferenceSession(path)


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (Port("x", (1, "length"), "float32"), "dynamic shape"),  # type: ignore[arg-type]
        (Port("x", (1, 4), "bfloat16"), "bfloat16"),
    ],
)
def test_cann_refuses_graphs_that_it_cannot_feed(
    graph: GraphFile, tmp_path: Path, runtime: object, port: Port, words: str
) -> None:
    """Layer models have free lengths, and numpy has no bfloat16. Oracle: the message."""
    path = tmp_path / "x.onnx"
    write_model(replace(graph, inputs=(port,), outputs=(replace(port, name="y"),)), path)
    with pytest.raises(ToolchainError, match=words):
        cann.InferenceSession(path)


def test_importing_costs_nothing() -> None:
    """`axcore --help` gets here. Oracle: the modules of a fresh interpreter."""
    code = (
        "import sys, axcore_toolchain_ascend as a; a.toolchains(), a.backends()\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)
