"""What is foreseen of a board, against figures that others published of real builds and chips."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore.language_model import LlmBuildArgs
from axcore.toolchains.contract import BuildRequest, Forecaster
from axcore.toolchains.pulsar2 import Pulsar2
from axcore.toolchains.pulsar2.forecast import Decoder, forecast, matrix_bytes

SMOLLM2 = Decoder(30, 576, 1536, 49152, heads=9, kv_heads=3, head_dim=64)
QWEN3 = Decoder(28, 1024, 3072, 151936, heads=16, kv_heads=8, head_dim=128)
QWEN25VL = Decoder(36, 2048, 11008, 151936, heads=16, kv_heads=2, head_dim=128)
INTERNVL3 = Decoder(28, 1536, 8960, 151674, heads=12, kv_heads=2, head_dim=128)


def config(decoder: Decoder) -> dict[str, int]:
    """``config.json`` of a decoder."""
    return {
        "num_hidden_layers": decoder.layers,
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.intermediate,
        "vocab_size": decoder.vocabulary,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
    }


def request(**llm: object) -> BuildRequest:
    """A build for an AX650."""
    args = LlmBuildArgs(128, 2047, (128,), **llm)  # type: ignore[arg-type]
    options = {"chip": "AX650", "npu-mode": "NPU3"}
    return BuildRequest("model", "/checkpoint", options, "image", (), args, 28)


def figures(decoder: Decoder, asked: BuildRequest) -> dict[str, float]:
    """Subject to value."""
    return {item.subject: item.value for item in forecast(asked, config(decoder), {}).estimates}


@pytest.mark.parametrize(("decoder", "nbytes"), [(SMOLLM2, 1_869_696), (QWEN3, 8_663_040)])
def test_a_layer_has_the_bytes_of_a_real_build(decoder: Decoder, nbytes: int) -> None:
    """Oracle: s4 layers of real builds of SmolLM2-135M and Qwen3-0.6B, to the byte."""
    assert decoder.layer_bytes("s4") == nbytes


@pytest.mark.parametrize(
    ("decoder", "weight_type", "megabytes"),
    [(SMOLLM2, "s8", 140), (QWEN3, "s4", 412), (QWEN3, "s8", 636)],
)
def test_a_whole_model_has_the_size_of_real_builds(
    decoder: Decoder, weight_type: str, megabytes: float
) -> None:
    """Oracle: sizes of real builds, known to the megabyte; within 2 %."""
    total = decoder.layer_bytes(weight_type) * decoder.layers + decoder.head_bytes
    assert total == pytest.approx(megabytes * 1e6, rel=0.02)


@pytest.mark.parametrize(("decoder", "rate"), [(QWEN25VL, 6.3), (INTERNVL3, 11.5), (QWEN3, 21.6)])
def test_decoding_is_near_what_boards_were_seen_to_do(decoder: Decoder, rate: float) -> None:
    """Oracle: tokens per second published for these models on an AX650 at NPU3; within 15 %."""
    assert figures(decoder, request())["decoding"] == pytest.approx(rate, rel=0.15)


@given(st.integers(1, 4000), st.integers(1, 40000))
def test_more_inputs_never_take_fewer_bytes(rows: int, inputs: int) -> None:
    """Law: a matrix with one more input is no smaller, and s4 never larger than s8."""
    small, large = (matrix_bytes(rows, n, "s8") for n in (inputs, inputs + 36))
    assert rows * inputs <= small <= large
    assert matrix_bytes(rows, inputs, "s4") <= small
    assert matrix_bytes(rows, inputs, "fp8_e4m3") == 4 * rows * inputs


def test_a_float_type_is_named_as_what_it_costs() -> None:
    """Oracle: a real build with fp8 weights takes four bytes a parameter."""
    small = forecast(request(weight_type="fp8_e4m3"), config(SMOLLM2), {}).notes
    assert [line for line in small if "4 bytes a parameter" in line] == list(small)


def test_a_large_tower_and_a_small_board_are_told() -> None:
    """A tower above 2 GB, and a model that 2 GB cannot hold; oracle: the arithmetic."""
    notes = forecast(request(), config(QWEN25VL), {"tower": 2_700_000_000}).notes
    assert [note.split(":")[0] for note in notes] == [
        "tower.onnx has 2.7 GB of weights",
        "does not fit a board that gives 2 GB to models",
    ]


def test_layers_of_other_kinds_get_no_figures() -> None:
    """A formula for attention layers says nothing of linear attention."""
    hybrid = {**config(QWEN3), "layer_types": ["linear_attention", "full_attention"]}
    told = forecast(request(), hybrid, {})
    assert not told.estimates
    assert "do not know" in told.notes[0]


def test_speed_is_told_of_the_chip_that_was_measured_alone() -> None:
    """Oracle: the published figures are of the AX650 at NPU3."""
    other = replace(request(), options={"chip": "AX620E", "npu-mode": "NPU2"})
    assert "decoding" not in figures(QWEN3, other)
    assert "weights of a layer file" in figures(QWEN3, other)


def test_pulsar2_is_a_forecaster() -> None:
    """`axcore plan` finds the method by the protocol."""
    assert isinstance(Pulsar2(), Forecaster)


def test_what_the_builder_is_known_to_refuse_is_told() -> None:
    """Oracle: builds that others saw fail; Qwen3, as wide in its heads, builds."""
    odd = {**config(replace(QWEN25VL, hidden=2560, heads=32)), "model_type": "llama"}
    assert any("asserts heads x head_dim" in note for note in forecast(request(), odd, {}).notes)
    fine = {**config(QWEN3), "model_type": "qwen3"}
    assert not forecast(request(), fine, {}).notes
    other = {**config(QWEN3), "model_type": "mistral"}
    assert "refused model type mistral" in forecast(request(), other, {}).notes[0]


def test_four_bits_are_told_with_their_figures() -> None:
    """Oracle: the published divergences."""
    (said,) = forecast(request(weight_type="s4"), config(QWEN3), {}).notes
    assert "KL 1.02" in said
