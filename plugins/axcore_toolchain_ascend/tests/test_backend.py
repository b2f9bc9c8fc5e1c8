"""Bundles answered through the card's backends, over stand-ins for what only a card has."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from axcore_toolchain_ascend import backends, cann, environment
from axcore_toolchain_ascend.backend import AscendBackend, numbered
from PIL import Image

import axcore
from axcore import Options, Registry, ToolchainError, UsageError
from axcore.choices import resolve
from axcore.runtime.deployment import Deployment
from axcore.runtime.runner import Runner
from axcore.runtime.torch_model import Place
from axcore.testing import answered

from .conftest import SOC, Standin

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import StandinRuntime


@pytest.fixture(scope="module")
def deployment(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A bundle as it is converted: ONNX files, and nothing built of them."""
    out = tmp_path_factory.mktemp("bundle")
    how: dict[str, Any] = {"weights": "random-tiny", "verify": False}
    axcore.convert("internvl3.5-1b", out, registry=registry, **how)
    return Deployment.open(out, registry)


@pytest.mark.parametrize("model", ["minicpm-v-2", "internvl3.5-1b"])
def test_an_answer_is_that_of_the_embedded_toolchain(
    model: str,
    registry: Registry,
    standin: Standin,
    ais_bench: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Vision graphs as OM files under the stand-in for ais_bench, the decoder in float32.

    MiniCPM-V-2 has its scales folded, as its shape on such cards wants. Oracle: the layer models
    of the embedded toolchain in float32.
    """
    (found,) = (backend for backend in backends() if backend.name == "ascend")
    # A package's metadata cannot be put in place of what is not installed.
    available = axcore.Availability(True, "a stand-in")
    monkeypatch.setattr(type(found), "availability", lambda _: available)
    fold = {"choices": {"fold-scales": "yes"}} if model == "minicpm-v-2" else {}
    options = Options(height=112, width=140, **fold)  # type: ignore[arg-type]
    how: dict[str, Any] = {"weights": "random-tiny", "toolchain": "ascend", "verify": False}
    out = tmp_path / "bundle"
    request = axcore.convert(model, out, options=options, registry=registry, **how).build_request
    axcore.build(out, options=SOC, registry=registry)
    axcore.build(
        out,
        toolchain="onnx",
        options={"exact": "float32"},
        registry=registry,
    )
    image = Image.effect_noise((140, 112), 80).convert("RGB")
    chosen = {"decoder-device": "cpu", "dtype": "float32"}
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "and?"}]
    made, expected = (
        answered(Runner.open(out, registry, name, options), [{"role": "user", "content": parts}],
                 max_new_tokens=6).token_ids
        for name, options in (("ascend", chosen), ("onnx", {}))
    )  # fmt: skip
    assert made == expected
    assert [session.device_id for session in ais_bench] == [0] * len(request.graphs)


def test_without_a_card_the_backend_says_what_it_needs(
    registry: Registry, deployment: Deployment
) -> None:
    """Oracle: this machine, which has neither ais_bench nor the provider."""
    for backend in backends():
        found = backend.availability()
        assert not found.available
        assert "wheels" in found.remedy or "without onnxruntime" in found.remedy
    with pytest.raises(ToolchainError, match="backend `ascend` is not available"):
        Runner.open(deployment.folder, registry, "ascend")


# Options -----------------------------------------------------------------------------------------


def opened(deployment: Deployment, name: str, given: dict[str, str]) -> None:
    """Run an image through the vision graphs of a backend, with options as a user gives them."""
    backend = backend_of(name)
    vision = backend.vision(deployment, resolve(name, backend.options, given))
    (graph,) = deployment.graphs
    (port,) = graph.inputs
    vision.features({port.name: np.zeros((*port.shape[2:], 3), np.uint8)})


def backend_of(name: str) -> AscendBackend:
    return next(backend for backend in backends() if backend.name == name)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"device_id": 0}),
        (
            {"device-id": "3", "npu-mem-limit": "2000", "precision-mode": "force_fp16"},
            {"device_id": 3, "npu_mem_limit": 2000, "precision_mode": "force_fp16"},
        ),
        ({"precision-mode-v2": "origin"}, {"device_id": 0, "precision_mode_v2": "origin"}),
    ],
)
def test_options_reach_the_provider(
    deployment: Deployment, runtime: StandinRuntime, given: dict[str, str], asked: dict[str, Any]
) -> None:
    """Device, memory and precision. Oracle: what the stand-in for ONNX Runtime received."""
    opened(deployment, "ascend-onnx", given)
    assert runtime.asked == [[(cann.PROVIDER, asked)]]


def test_the_device_reaches_ais_bench(
    deployment: Deployment, ais_bench: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which hides no card then. Oracle: the stand-in for ais_bench, and the environment."""
    (graph,) = deployment.graphs
    om_file = deployment.folder / f"{graph.stem}.om"
    om_file.write_text(json.dumps({"onnx": str(om_file.with_suffix(".onnx"))}))
    opened(deployment, "ascend", {"device-id": "2"})
    assert [session.device_id for session in ais_bench] == [2]
    assert "ASCEND_RT_VISIBLE_DEVICES" not in os.environ


def test_the_language_model_is_on_the_same_card() -> None:
    """On the host there is one device only. Oracle: torch's devices; CUDA's stands in for a card's,
    which needs torch_npu.
    """
    for device, number, expected in (
        ("cuda", 3, "cuda:3"),
        ("cuda", 0, "cuda:0"),
        ("cpu", 3, "cpu"),
    ):
        place = numbered(Place(torch.device(device), torch.float16), number)
        assert place == (torch.device(expected), torch.float16)


@pytest.mark.parametrize("profile", ["run", "performance"])
def test_the_environment_is_chosen(
    deployment: Deployment, runtime: StandinRuntime, profile: str
) -> None:
    """Only "performance" lets the library be measured. Oracle: the variables of the profile."""
    opened(deployment, "ascend-onnx", {"environment": profile})
    wanted = environment(profile)
    known = environment("performance")
    assert {name: os.environ[name] for name in known if name in os.environ} == wanted


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ascend", {"device-id": "first"}, "--device-id first is no number"),
        ("ascend-onnx", {"npu-mem-limit": "-1"}, "--npu-mem-limit -1 is no number"),
        ("ascend-onnx", {"environment": "fast"}, "--environment fast is not offered"),
        ("ascend", {"npu-mem-limit": "1"}, "has no option --npu-mem-limit"),
    ],
)
def test_options_that_make_no_sense(
    deployment: Deployment, name: str, given: dict[str, str], message: str
) -> None:
    """Refused before anything of CANN is loaded. Oracle: the messages, on a machine without."""
    with pytest.raises(UsageError, match=message):
        opened(deployment, name, given)
