"""Settings that Pulsar2 takes and that were seen to do nothing, to fail, or to cost accuracy.

They are no errors: versions differ, and some work for other graphs. Each remark names who saw it.

Sources: OX is onnxsim/onnxsim (``scripts/axera``, with numbers of its pull requests), MG is
AXERA-TECH/Magnetar (``issues``), FR are public notes on converting FireRedASR, FV on FastVLM, LE on
LS-EEND; "documentation" is AXERA-TECH/pulsar2-docs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ...errors import ToolchainError
from ...foreign import read_bytes, reason
from ...limits import CONFIG_BYTES
from .schema import BuildConfig

if TYPE_CHECKING:
    from pathlib import Path

    from .schema import InputProcessor, LayerConfig, QuantConfig

_FP32 = {
    "MatMul": "it is recorded and then built as U8 (OX 1119)",
    "ReduceMean": "it has no effect (OX 1119)",
    "Sqrt": "it has no effect (OX 1119)",
    "Softmax": "no output bit changed (OX 1119)",
    "LayerNormalization": "it cannot be tiled on AX650 at the sizes of a tower (OX 1366, MG, LE)",
}
_FINETUNING = ("enable_adaround", "enable_lsq", "enable_brecq")


def remarks(config: BuildConfig) -> list[str]:
    """Return what was seen of the settings of a configuration, a line each."""
    return [
        *(line for layer in config.quant.layer_configs for line in _of_layer(layer)),
        *_of_quantisation(config.quant),
        *(line for processor in config.input_processors for line in _of_input(processor)),
        *_of_batches(config),
    ]


def remarks_on(path: Path) -> list[str]:
    """Return what was seen of the settings in a file, which a user may have edited.

    Pulsar2 also takes comments in JSON, and fields that are not documented; such a file is not
    refused, but its settings are not checked.

    Raises:
        ToolchainError: The file cannot be read.
    """
    try:
        text = read_bytes(path, CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise ToolchainError(
            f"{path} cannot be read: {reason(error)}", hint="run `axcore convert` again"
        ) from error
    try:
        return remarks(BuildConfig.model_validate_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        return [f"not checked: {where}: {first['msg']}"]


def bits(config: BuildConfig) -> int:
    """Return the most bits that the configuration asks of integer activations."""
    wide = any(layer.data_type in ("U16", "S16") for layer in config.quant.layer_configs)
    return 16 if wide else 8


def _of_layer(layer: LayerConfig) -> Iterator[str]:
    types = sorted({layer.op_type, *layer.op_types} - {""})
    for name in types:
        if name.startswith("onnx."):
            yield (
                f"layer_configs: op_types `{name}` is the name of a fused operator and was ignored"
                " without a word; name ONNX operators, or the layer in layer_names (OX 1303)"
            )
    if layer.data_type == "FP32":
        for name in types:
            if name in _FP32:
                yield f"layer_configs: data_type FP32 for {name}: {_FP32[name]}"
        if "DEFAULT" in layer.start_tensor_names:
            yield (
                "layer_configs: data_type FP32 for DEFAULT failed on every transformer, because"
                " LayerNormalization cannot be tiled in it (OX 1366)"
            )
    if layer.weight_data_type != "S8" and set(types) - {"Conv"}:
        yield (
            f"layer_configs: weight_data_type {layer.weight_data_type} works for Conv; weights of"
            " MatMul and Gemm stayed 8-bit (MG ZipVoice)"
        )


def _of_quantisation(quant: QuantConfig) -> Iterator[str]:
    if quant.highest_mix_precision:
        yield (
            "highest_mix_precision failed on real graphs: LayerNormalization cannot be tiled,"
            " AveragePool and Erf have no float form (OX 1366, 1367)"
        )
    if quant.calibration_method in ("MSE", "KL"):
        yield (
            f"calibration_method {quant.calibration_method} gave the scales of MinMax in 24 probe"
            " builds with 7.0-lite (OX 1422)"
        )
    if quant.calibration_method == "Percentile":
        yield (
            "calibration_method Percentile cost 14 dB on LayerNormalization and 3 dB on attention"
            " in probe builds (OX 1422)"
        )
    if quant.transformer_opt_level == 2:
        yield "transformer_opt_level 2 cost accuracy (cosine 0.9998 to 0.979) for no speed (FR)"
    slow = [name for name in _FINETUNING if getattr(quant, name)]
    if slow and quant.device == "cpu":
        yield (
            f"{', '.join(slow)} needs a CUDA GPU (documentation); on a CPU 135 M parameters were"
            " not done after 30 minutes (OX); set device"
        )
    if quant.precision_analysis and quant.precision_analysis_mode == "NPUBackend":
        yield (
            "precision_analysis_mode NPUBackend ran out of memory in a small container with all"
            " samples (FV)"
        )


def _of_input(processor: InputProcessor) -> Iterator[str]:
    if processor.src_format.startswith(("YU", "UY", "YV")) and processor.csc_mode == "NoCSC":
        yield (
            f"input_processors: {processor.src_format} for `{processor.tensor_name}` needs a"
            " csc_mode (documentation)"
        )


def _of_batches(config: BuildConfig) -> Iterator[str]:
    if config.compiler.static_batch_sizes and config.compiler.max_dynamic_batch_size:
        yield (
            "compiler: static_batch_sizes and max_dynamic_batch_size exclude each other"
            " (documentation)"
        )
