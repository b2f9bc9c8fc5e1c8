"""Settings that are taken and were seen to do nothing or to fail; oracle: the published reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from axcore.errors import ToolchainError
from axcore.toolchains.pulsar2.remarks import remarks, remarks_on
from axcore.toolchains.pulsar2.schema import BuildConfig

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT = {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"]}
YUV = {"tensor_name": "x", "src_format": "YUV420SP"}

SEEN: list[tuple[str, dict[str, Any]]] = [
    ("MatMul: it is recorded and then built as U8", {"op_types": ["MatMul"], "data_type": "FP32"}),
    ("ReduceMean: it has no effect", {"op_type": "ReduceMean", "data_type": "FP32"}),
    ("FP32 for DEFAULT failed", {**DEFAULT, "data_type": "FP32"}),
    ("ignored without a word", {"op_types": ["onnx.FullyConnected"], "data_type": "U16"}),
    ("stayed 8-bit", {"op_types": ["MatMul"], "weight_data_type": "FP32"}),
]


@pytest.mark.parametrize(("words", "layer"), SEEN)
def test_a_layer_setting_that_does_nothing_or_fails_is_told(
    words: str, layer: dict[str, Any]
) -> None:
    """Each names who saw it."""
    (said,) = remarks(BuildConfig.model_validate({"quant": {"layer_configs": [layer]}}))
    assert words in said
    assert said.rstrip(")").rpartition("(")[2]


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ("highest_mix_precision failed", {"quant": {"highest_mix_precision": True}}),
        ("gave the scales of MinMax", {"quant": {"calibration_method": "MSE"}}),
        ("gave the scales of MinMax", {"quant": {"calibration_method": "KL"}}),
        ("cost 14 dB", {"quant": {"calibration_method": "Percentile"}}),
        ("needs a CUDA GPU", {"quant": {"enable_adaround": True}}),
        ("for no speed", {"quant": {"transformer_opt_level": 2}}),
        ("needs a csc_mode", {"input_processors": [YUV]}),
        (
            "exclude each other",
            {"compiler": {"static_batch_sizes": [1, 2], "max_dynamic_batch_size": 4}},
        ),
    ],
)
def test_a_setting_that_does_nothing_or_fails_is_told(words: str, config: dict[str, Any]) -> None:
    """One remark for each."""
    (said,) = remarks(BuildConfig.model_validate(config))
    assert words in said


@pytest.mark.parametrize(
    "config",
    [
        {"quant": {"layer_configs": [{"op_type": "Conv", "output_data_type": "FP32"}]}},
        {"quant": {"layer_configs": [{"op_types": ["Conv"], "weight_data_type": "FP32"}]}},
        {"quant": {"layer_configs": [{"layer_names": ["op_8:onnx.FullyConnected"]}]}},
        {"quant": {"layer_configs": [{**DEFAULT, "data_type": "U16"}]}},
        {"quant": {"enable_adaround": True, "device": "cuda:0"}},
        {"input_processors": [{"tensor_name": "x", "scale": 0.5, "zeropoint": 128}]},
        {"input_processors": [{**YUV, "csc_mode": "FullRange"}]},
        {"op_processors": [{"op_name": "Reshape_0", "attrs": {"allowzero": 0}}]},
        {"debug": {"dump_frontend_graph": True}},
        {
            "compiler": {
                "check": 0,
                "sub_configs": [
                    {"start_tensor_names": ["a"], "end_tensor_names": ["b"], "check": 2}
                ],
            }
        },
    ],
)
def test_what_is_documented_is_taken_without_a_remark(config: dict[str, Any]) -> None:
    """Oracle: the vendor's documentation of these fields."""
    parsed = BuildConfig.model_validate(config)
    assert remarks(parsed) == []
    assert json.loads(parsed.to_json()) == config


def test_a_file_with_comments_is_told_to_be_unchecked(tmp_path: Path) -> None:
    """Pulsar2 takes comments in JSON, so such a file is no error."""
    path = tmp_path / "graph.pulsar2.json"
    path.write_text('{"quant": {"calibration_method": "KL"}} // mine')
    (said,) = remarks_on(path)
    assert said.startswith("not checked: ")
    path.write_text('{"quant": {"calibration_metod": "KL"}}')
    assert remarks_on(path) == [
        "not checked: quant.calibration_metod: Extra inputs are not permitted"
    ]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """A folder in place of the configuration."""
    with pytest.raises(ToolchainError, match="cannot be read"):
        remarks_on(tmp_path)
