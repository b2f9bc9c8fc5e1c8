"""Bundles answered through the card's backends, over stand-ins for what only a card has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from axcore_toolchain_ascend import Ascend, backends
from PIL import Image

import axcore
from axcore import Options, Registry, ToolchainError
from axcore.runtime.runner import Answer, Runner
from axcore.testing import Recorder

from .conftest import SOC, Standin

if TYPE_CHECKING:
    from pathlib import Path


def answered(runner: Runner, picture: Image.Image) -> list[int]:
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "and?"}]
    prompt, answer = runner.prepare([{"role": "user", "content": parts}]), Answer()
    for _ in runner.answer(prompt, max_new_tokens=6, answer=answer):
        pass
    return answer.token_ids


@pytest.mark.parametrize("model", ["minicpm-v-2", "internvl3.5-1b"])
def test_an_answer_is_that_of_the_embedded_toolchain(
    model: str,
    registry: Registry,
    standin: Standin,
    recorder: Recorder,
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
    Ascend().build(out, request, recorder, options=SOC)
    axcore.build(
        out,
        toolchain="onnx",
        options={"weight-type": "fp32", "hidden-state-type": "fp32"},
        registry=registry,
    )
    picture = Image.effect_noise((140, 112), 80).convert("RGB")
    chosen = {"decoder-device": "cpu", "dtype": "float32"}
    made = answered(Runner.open(out, registry, "ascend", chosen), picture)
    assert made == answered(Runner.open(out, registry, "onnx"), picture)
    assert [session.device_id for session in ais_bench] == [0] * len(request.graphs)


def test_without_a_card_the_backend_says_what_it_needs(registry: Registry, tmp_path: Path) -> None:
    """Oracle: this machine, which has neither ais_bench nor the provider."""
    for backend in backends():
        found = backend.availability()
        assert not found.available
        assert "wheels" in found.remedy or "without onnxruntime" in found.remedy
    how: dict[str, Any] = {"weights": "random-tiny", "verify": False}
    axcore.convert("internvl3.5-1b", tmp_path, registry=registry, **how)
    with pytest.raises(ToolchainError, match="backend `ascend` is not available"):
        Runner.open(tmp_path, registry, "ascend")
