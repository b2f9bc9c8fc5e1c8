"""The configuration of ``pulsar2 build``: published values, allowed values, contradictions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from axcore import (
    BuildRequest,
    Calibration,
    ContractError,
    GraphFile,
    LlmBuildArgs,
    Port,
    UsageError,
)
from axcore.toolchains.pulsar2 import Pulsar2
from axcore.toolchains.pulsar2.chips import NPU_MODES, Chip
from axcore.toolchains.pulsar2.config import config_for
from axcore.toolchains.pulsar2.schema import (
    BuildConfig,
    InputConfig,
    InputProcessor,
    LayerConfig,
    QuantConfig,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# The published configuration of the 448 px image graph, field by field; for video,
# calibration_size is 4.
PUBLISHED: dict[str, Any] = {
    "model_type": "ONNX",
    "npu_mode": "NPU3",
    "quant": {
        "input_configs": [
            {
                "tensor_name": "hidden_states",
                "calibration_dataset": "hidden_states.tar",
                "calibration_format": "Image",
                "calibration_size": 8,
                "calibration_mean": [122.7709383, 116.7460125, 104.09373615],
                "calibration_std": [68.5005327, 66.6321579, 70.32316305],
            }
        ],
        "calibration_method": "MinMax",
        "precision_analysis": True,
        "precision_analysis_method": "EndToEnd",
        "conv_bias_data_type": "FP32",
        "enable_smooth_quant": True,
        "disable_auto_refine_scale": True,
        "layer_configs": [
            {
                "start_tensor_names": ["DEFAULT"],
                "end_tensor_names": ["DEFAULT"],
                "data_type": "U16",
            }
        ],
    },
    "input_processors": [
        {
            "tensor_name": "hidden_states",
            "tensor_format": "BGR",
            "tensor_layout": "NCHW",
            "src_dtype": "U8",
            "src_layout": "NHWC",
        }
    ],
    "compiler": {"npu_perf": False},
}
REQUEST = BuildRequest(
    model="foo-vl-3b",
    checkpoint="/checkpoints/foo",
    options={"chip": "AX650"},
    task="image",
    graphs=(),
    llm=LlmBuildArgs(prefill_len=320, kv_cache_len=1023),
    decoder_layers=36,
)


@pytest.mark.parametrize("size", [8, 4], ids=["image", "video"])
def test_the_published_values_give_the_published_configuration(graph: GraphFile, size: int) -> None:
    """Oracle: the published configurations, written out above."""
    expected = json.loads(json.dumps(PUBLISHED))
    expected["quant"]["input_configs"][0]["calibration_size"] = size
    calibration = replace(graph.calibration, size=size)
    text = config_for(replace(graph, calibration=calibration), REQUEST).to_json()
    assert json.loads(text) == expected
    assert text.startswith('{\n  "model_type": "ONNX",\n  "npu_mode"')


@pytest.mark.parametrize("normalised", [False, True])
def test_what_the_host_normalises_the_target_does_not(graph: GraphFile, normalised: bool) -> None:
    """Mean and deviation stay with the samples. Oracle: what the documentation says undoes them."""
    calibration = replace(graph.calibration, src_normalised=normalised)
    config = json.loads(config_for(replace(graph, calibration=calibration), REQUEST).to_json())
    (samples,), (processor,) = config["quant"]["input_configs"], config["input_processors"]
    assert samples["calibration_mean"] == PUBLISHED["quant"]["input_configs"][0]["calibration_mean"]
    expected = {"mean": [0.0] * 3, "std": [1.0] * 3} if normalised else {}
    assert {name: processor[name] for name in processor.keys() & {"mean", "std"}} == expected


def test_prepare_writes_a_configuration_per_graph_and_the_script(
    two_graphs: BuildRequest,
) -> None:
    """Oracle: the names that the bundle's contract gives."""
    files = Pulsar2().prepare(two_graphs)
    assert set(files) == {"Foo-VL-3B_vision.pulsar2.json", "second_graph.pulsar2.json", "build.sh"}
    assert json.loads(files["Foo-VL-3B_vision.pulsar2.json"]) == PUBLISHED


names = st.text("abcdef_0123456789", min_size=1, max_size=8)
graphs = st.builds(
    GraphFile,
    stem=names,
    inputs=st.lists(st.builds(Port, names, st.just((1, 3))), min_size=1, max_size=1).map(tuple),
    outputs=st.just((Port("out", (1, 2)),)),
    calibration=st.builds(
        Calibration,
        format=st.sampled_from(["Image", "Numpy", "NumpyObject"]),
        mean=st.none() | st.just((1.0, 2.0, 3.0)),
        std=st.none() | st.just((0.5, 1.0, 2.0)),
        tensor_format=st.sampled_from(["AutoColorSpace", "RGB", "BGR"]),
        src_dtype=st.sampled_from([None, "U8", "FP32"]),
        src_layout=st.sampled_from([None, "NCHW", "NHWC"]),
        src_normalised=st.booleans(),
        size=st.just(-1) | st.integers(1, 64),
    ),
    archive=names.map(lambda name: f"{name}.tar"),
    samples=st.integers(0, 64),
    build_options=st.just({}),
)


@given(graphs)
def test_any_calibration_gives_a_valid_file(graph: GraphFile) -> None:
    """What is written reads back to the same configuration, and asks for no more samples than
    there are. Oracle: the schema itself for validity, the rule in words for the size.
    """
    config = config_for(graph, REQUEST)
    assert BuildConfig.model_validate_json(config.to_json()) == config
    entry = config.quant.input_configs[0]
    wanted, there = graph.calibration.size, graph.samples
    assert entry.calibration_size == (wanted if wanted < 0 or not there else min(wanted, there))
    by_name = graph.calibration.format != "NumpyObject"
    assert entry.tensor_name == (graph.inputs[0].name if by_name else "DEFAULT")


def test_build_options_lie_over_the_defaults(graph: GraphFile) -> None:
    """Mappings merge, lists are replaced, None leaves out. Oracle: the published fields."""
    options: dict[str, dict[str, Any]] = {
        "pulsar2": {
            "quant": {
                "transformer_opt_level": 1,
                "device": "cuda:0",
                "layer_configs": [],
                "calibration_method": None,
            },
            "compiler": {"check": 3},
        },
        "another": {"quant": "not ours"},
    }
    config = config_for(replace(graph, build_options=options), REQUEST)
    written = json.loads(config.to_json())
    assert written["quant"].pop("transformer_opt_level") == 1
    assert written["quant"].pop("device") == "cuda:0"
    assert written["quant"].pop("layer_configs") == []
    assert written["compiler"] == {"npu_perf": False, "check": 3}
    changed = {"layer_configs", "calibration_method"}
    assert written["quant"] == {k: v for k, v in PUBLISHED["quant"].items() if k not in changed}


def test_a_wrong_build_option_names_graph_field_and_value(graph: GraphFile) -> None:
    """The family's author must see which field is wrong. Oracle: the words of the message."""
    options = {"pulsar2": {"quant": {"calibration_metod": "MinMax"}}}
    with pytest.raises(ContractError) as caught:
        config_for(replace(graph, build_options=options), REQUEST)
    assert "Foo-VL-3B_vision" in caught.value.message
    assert "quant.calibration_metod" in caught.value.message
    assert "build_options" in caught.value.hint


def test_several_inputs_share_an_archive_of_named_arrays_only(graph: GraphFile) -> None:
    """One array a file cannot feed two inputs. Oracle: the documented formats."""
    two = replace(graph, inputs=(*graph.inputs, Port("position_ids", (1, 1024), "int32")))
    with pytest.raises(ContractError, match=r"2 inputs \(hidden_states, position_ids\)"):
        config_for(two, REQUEST)
    named = replace(two, calibration=Calibration(format="NumpyObject"))
    assert config_for(named, REQUEST).quant.input_configs[0].tensor_name == "DEFAULT"


def test_a_chip_other_than_the_default_is_written_and_bounds_the_mode(graph: GraphFile) -> None:
    """Oracle: the documented table of chips and modes."""
    other = replace(REQUEST, options={"chip": "AX8860", "npu-mode": "NPU1"})
    assert config_for(graph, other).target_hardware == "AX8860"
    with pytest.raises(UsageError) as caught:
        Pulsar2().target({"chip": "AX620E", "npu-mode": "NPU3"})
    assert "`NPU3`" in caught.value.message
    assert "NPU1, NPU2" in caught.value.hint
    with pytest.raises(UsageError, match="`AX9000`"):
        Pulsar2().target({"chip": "AX9000"})


@pytest.mark.parametrize(
    ("chip", "modes"),
    [
        ("AX650", "NPU1 NPU2 NPU3"),
        ("M76H", "NPU1 NPU2 NPU3"),
        ("AX620E", "NPU1 NPU2"),
        ("AX615", "NPU1 NPU2"),
        ("AX637", "NPU1"),
        ("M57", "NPU1"),
        ("AX8860", "NPU1 NPU2 NPU4"),
    ],
)
def test_every_chip_takes_its_modes_and_no_other(chip: str, modes: str) -> None:
    """Without a mode it is all of the NPU. Oracle: the documented table, written out."""
    assert NPU_MODES[chip] == tuple(modes.split())
    assert Chip.of({"chip": chip}).npu_mode == modes.split()[-1]
    for mode in ("NPU1", "NPU2", "NPU3", "NPU4"):
        data = {"target_hardware": chip, "npu_mode": mode}
        if mode in modes.split():
            assert BuildConfig.model_validate(data).npu_mode == mode
        else:
            with pytest.raises(ValidationError, match=f"{chip} has no NPU mode {mode}"):
                BuildConfig.model_validate(data)


def test_defaults_are_the_documented_ones() -> None:
    """Oracle: the documented defaults, written out."""
    config = BuildConfig()
    assert (config.target_hardware, config.npu_mode) == ("AX650", "NPU1")
    assert config.output_name == "compiled.axmodel"
    quant = config.quant
    assert (quant.calibration_method, quant.precision_analysis) == ("MinMax", False)
    assert quant.precision_analysis_method == "PerLayer"
    assert quant.precision_analysis_mode == "Reference"
    assert (quant.conv_bias_data_type, quant.device) == ("S32", "cpu")
    assert (quant.enable_smooth_quant, quant.smooth_quant_threshold) == (False, 0.2)
    assert (quant.smooth_quant_strength, quant.transformer_opt_level) == (0.6, 0)
    assert not quant.disable_auto_refine_scale
    entry = InputConfig(tensor_name="x", calibration_dataset="x.zip")
    assert (entry.calibration_format, entry.calibration_size) == ("Image", 32)
    layer = LayerConfig(op_type="Conv")
    assert (layer.data_type, layer.weight_data_type) == ("U8", "S8")
    processor = InputProcessor(tensor_name="x")
    assert (processor.tensor_format, processor.src_format) == ("AutoColorSpace",) * 2
    assert (processor.tensor_layout, processor.src_layout) == ("NCHW", "NCHW")
    assert (processor.src_dtype, processor.csc_mode) == ("FP32", "NoCSC")
    assert (config.compiler.check, config.compiler.npu_perf) == (0, False)
    assert config.to_json() == "{}\n"


def entry(**changes: Any) -> Callable[[], InputConfig]:
    return lambda: InputConfig(**{"tensor_name": "x", "calibration_dataset": "x.tar", **changes})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: LayerConfig(op_type="Conv", data_type="FP32"), "Conv cannot run in FP32"),
        (lambda: LayerConfig(op_types=["Add", "Conv"], data_type="FP32"), "Conv cannot run"),
        (lambda: LayerConfig(op_type="Add", output_data_type="U16"), "for Conv, not for ..Add"),
        (lambda: LayerConfig(data_type="U16"), "choose one of layer_name"),
        (lambda: LayerConfig(op_type="Add", layer_name="Add_1"), "choose one of layer_name"),
        (lambda: LayerConfig(start_tensor_names=["a"]), "come together"),
        (entry(calibration_std=[1.0, 0.0, 1.0]), "cannot hold 0"),
        (entry(calibration_mean=[1.0], calibration_std=[1.0, 2.0]), "mean has 1 channels, std 2"),
        (entry(calibration_size=0), "-1 means all"),
        (entry(calibration_size=-2), "greater than or equal to -1"),
        (entry(calibration_dataset="x.rar"), "match pattern"),
        (entry(calibration_format="NumpyObject"), "tensor_name is DEFAULT"),
        (entry(calibration_format="Text"), "'Image', 'Numpy', 'Binary' or 'NumpyObject'"),
        (entry(calibration_mean=[float("nan")]), "finite"),
        (entry(extra=1), "Extra inputs are not permitted"),
        (lambda: InputProcessor(tensor_name="x", std=[0.0]), "cannot hold 0"),
        (lambda: InputProcessor(tensor_name="x", csc_mode="Matrix"), "12 numbers"),
        (lambda: QuantConfig(transformer_opt_level=3), "less than or equal to 2"),
        (lambda: QuantConfig(device="gpu"), "match pattern"),
        (lambda: QuantConfig(input_configs=[entry()(), entry()()]), "configured twice: x"),
    ],
)
def test_contradictions_are_refused(make: Callable[[], object], reason: str) -> None:
    """Each would fail the tool late or spoil a build silently. Oracle: the documented rules."""
    with pytest.raises(ValidationError, match=reason):
        make()


def test_importing_the_toolchain_is_light() -> None:
    """``axcore --help`` gets here, so pydantic must wait. Oracle: a fresh interpreter."""
    code = (
        "import axcore.toolchains.pulsar2, sys;"
        "assert not {'pydantic', 'torch', 'numpy', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
