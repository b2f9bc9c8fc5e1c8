"""Every family through conversion, the stand-in for atc, and the engine over its results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from axcore_toolchain_ascend import om

import axcore
from axcore import Options, Registry

from .conftest import SOC, Standin, flags_of

if TYPE_CHECKING:
    from pathlib import Path

MODELS: dict[str, dict[str, Any]] = {
    "minicpm-v-2": {"height": 112, "width": 140, "choices": {"fold-scales": "yes"}},
    "minicpm-v-4": {"height": 112, "width": 140, "split": 2},
    "minicpm-v-4.6": {},
    "qwen2.5-vl-3b": {"height": 112, "width": 112},
    "internvl3.5-1b": {"height": 112, "width": 112, "dtype": "float16"},
}


@pytest.mark.parametrize("model", MODELS)
def test_every_vision_graph_is_converted_and_runs(
    model: str,
    registry: Registry,
    standin: Standin,
    ais_bench: list[Any],
    tmp_path: Path,
) -> None:
    """Commands name every input with its shape; engines give what the graphs compute.

    No operator table is known, so nothing is said of operators.

    Oracle: the stand-in for atc, which compares with the ONNX files; ONNX Runtime; the manifest.
    """
    options = Options(**MODELS[model])
    out = tmp_path / "bundle"
    how: dict[str, Any] = {"weights": "random-tiny", "toolchain": "ascend", "verify": False}
    made = axcore.convert(model, out, options=options, registry=registry, **how)
    assert "build_ascend.sh" in made.files
    assert all(component.findings is None for component in made.manifest.components)
    request = made.build_request
    built = axcore.build(out, options=SOC, registry=registry)
    assert [path.name for path in built] == [f"{graph.stem}.om" for graph in request.graphs]
    for call, path, graph in zip(standin.calls(), built, request.graphs, strict=True):
        assert flags_of(call)["model"] == f"{graph.stem}.onnx"
        _compare(path)
    assert (out / "llm").is_dir() == (model == "minicpm-v-2")
    assert json.loads((out / "axcore.json").read_text())["toolchain"] == "ascend"


def _compare(path: Path) -> None:
    session = om.InferenceSession(path)
    draw = np.random.default_rng(1).standard_normal
    feed = {port.name: draw(port.shape).astype(port.dtype) for port in session.get_inputs()}
    plain = onnxruntime.InferenceSession(
        path.with_suffix(".onnx"), providers=["CPUExecutionProvider"]
    )
    for found, expected in zip(session.run(None, feed), plain.run(None, feed), strict=True):
        np.testing.assert_array_equal(found, expected)
