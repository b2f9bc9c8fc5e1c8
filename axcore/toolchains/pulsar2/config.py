"""From an exported graph to its ``pulsar2 build`` configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ...errors import ContractError
from .chips import DEFAULT_CHIP, Chip
from .schema import BuildConfig

if TYPE_CHECKING:
    from ..contract import BuildRequest, GraphFile

PUBLISHED_QUANT: Mapping[str, Any] = {
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
}
"""What the published configurations of vision-language models have in common."""


def config_for(graph: GraphFile, request: BuildRequest) -> BuildConfig:
    """Return the configuration that builds `graph`.

    The published settings come first, then the graph's calibration, then its own
    ``build_options["pulsar2"]``: mappings are merged, None takes a setting out, anything else
    replaces what was there.

    Raises:
        ContractError: The options do not fit the schema, or the samples cannot serve the inputs.
    """
    tensor, chip = _tensor_name(graph), Chip.of(request.options)
    config: dict[str, Any] = {
        "model_type": "ONNX",
        "npu_mode": chip.npu_mode,
        "quant": {**PUBLISHED_QUANT, "input_configs": [_input_config(graph, tensor)]},
        "input_processors": [_input_processor(graph, tensor)],
        "compiler": {"npu_perf": False},
    }
    if chip.name != DEFAULT_CHIP:
        config["target_hardware"] = chip.name
    merged = _merged(config, graph.build_options.get("pulsar2", {}))
    try:
        return BuildConfig.model_validate(merged)
    except ValidationError as error:
        raise ContractError(
            f"`{graph.stem}` cannot be configured for Pulsar2\n{_explained(error)}",
            hint='correct the `calibration` or `build_options["pulsar2"]` of its component',
        ) from error


def _tensor_name(graph: GraphFile) -> str:
    if graph.calibration.format == "NumpyObject":
        return "DEFAULT"
    if len(graph.inputs) == 1:
        return graph.inputs[0].name
    raise ContractError(
        f"`{graph.stem}` has {len(graph.inputs)} inputs "
        f"({', '.join(port.name for port in graph.inputs)}), but {graph.calibration.format} "
        "samples hold one array",
        hint='give its component calibration format "NumpyObject"',
    )


def _input_config(graph: GraphFile, tensor: str) -> dict[str, Any]:
    how = graph.calibration
    config: dict[str, Any] = {
        "tensor_name": tensor,
        "calibration_dataset": graph.archive,
        "calibration_format": how.format,
        "calibration_size": _samples_used(how.size, graph.samples),
    }
    if how.mean is not None:
        config["calibration_mean"] = list(how.mean)
    if how.std is not None:
        config["calibration_std"] = list(how.std)
    return config


def _samples_used(wanted: int, available: int) -> int:
    if wanted == -1 or available == 0:
        return wanted
    return min(wanted, available)


def _input_processor(graph: GraphFile, tensor: str) -> dict[str, Any]:
    how = graph.calibration
    processor: dict[str, Any] = {"tensor_name": tensor, "tensor_format": how.tensor_format}
    if how.format == "Image":
        processor["tensor_layout"] = "NCHW"
    if how.src_dtype is not None:
        processor["src_dtype"] = how.src_dtype
    if how.src_layout is not None:
        processor["src_layout"] = how.src_layout
    if how.src_normalised:  # left out, the values for samples would be compiled in
        processor["mean"] = [0.0] * len(how.mean or ())
        processor["std"] = [1.0] * len(how.std or ())
    return processor


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merged(result[name], value) if nested else value
    return {name: value for name, value in result.items() if value is not None}


def _explained(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(map(str, problem["loc"])) or "configuration"
        lines.append(f"  {where}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
