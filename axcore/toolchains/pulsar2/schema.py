"""The configuration file of ``pulsar2 build`` as types: fields, allowed values and defaults.

Unknown fields are refused, and so is what contradicts itself, before the tool spends an hour on
it. `BuildConfig.to_json` writes only what was set, in the order of the fields here.

Source: Pulsar2 7.0 documentation, "Configuration file details" with its proto definition, and "Set
separate compilation options for subgraphs".
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .chips import NPU_MODES

Archive = Annotated[str, Field(pattern=r"\.(tar|tar\.gz|zip)$")]
Layout = Literal["NCHW", "NHWC"]
QuantType = Literal["U8", "S8", "U16", "S16", "FP32"]
TensorFormat = Literal["AutoColorSpace", "BGR", "RGB", "GRAY"]
SourceFormat = Literal[
    "AutoColorSpace",
    "GRAY",
    "BGR",
    "RGB",
    "YUYV422",
    "UYVY422",
    "YUV420SP",
    "YVU420SP",
    "RAW",
]


class Section(BaseModel):
    """A part of the configuration: closed, and finite in every number."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


def check_normalisation(mean: list[float], std: list[float]) -> None:
    """Refuse a mean and divisor that cannot belong together; either may be left out (empty).

    Raises:
        ValueError: The lengths differ or a divisor is zero.
    """
    if mean and std and len(mean) != len(std):
        raise ValueError(f"mean has {len(mean)} channels, std {len(std)}")
    if 0 in std:
        raise ValueError(f"std divides, so it cannot hold 0: {std}")


def check_unique(names: list[str]) -> None:
    """Refuse a tensor that is configured twice.

    Raises:
        ValueError: The message names the tensors.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"configured twice: {', '.join(twice)}")


class InputConfig(Section):
    """Calibration samples of one input, or of every input by the name ``DEFAULT``."""

    tensor_name: str
    calibration_dataset: Archive
    calibration_format: Literal["Image", "Numpy", "Binary", "NumpyObject"] = "Image"
    calibration_size: Annotated[int, Field(ge=-1)] = 32
    calibration_mean: list[float] = []
    calibration_std: list[float] = []

    @model_validator(mode="after")
    def _agrees(self) -> InputConfig:
        check_normalisation(self.calibration_mean, self.calibration_std)
        if self.calibration_size == 0:
            raise ValueError("calibration_size is 0; -1 means all samples")
        if self.calibration_format == "NumpyObject" and self.tensor_name != "DEFAULT":
            raise ValueError("a NumpyObject sample names its inputs, so tensor_name is DEFAULT")
        return self


class LayerConfig(Section):
    """Precision of a layer, of an operator type, or of all between two sets of tensors."""

    layer_name: str = ""
    layer_names: list[str] = []
    op_type: str = ""
    op_types: list[str] = []
    start_tensor_names: list[str] = []
    end_tensor_names: list[str] = []
    data_type: QuantType = "U8"
    output_data_type: QuantType = "U8"
    weight_data_type: Literal["S8", "S16", "FP32"] = "S8"

    @model_validator(mode="after")
    def _selects_once(self) -> LayerConfig:
        if bool(self.start_tensor_names) != bool(self.end_tensor_names):
            raise ValueError("start_tensor_names and end_tensor_names come together")
        selectors = (
            self.layer_name,
            self.layer_names,
            self.op_type,
            self.op_types,
            self.start_tensor_names,
        )
        if sum(map(bool, selectors)) != 1:
            raise ValueError(
                "choose one of layer_name, layer_names, op_type, op_types, "
                "start_tensor_names with end_tensor_names"
            )
        return self

    @model_validator(mode="after")
    def _treats_conv_as_conv(self) -> LayerConfig:
        types = {self.op_type, *self.op_types} - {""}
        if "Conv" in types and self.data_type == "FP32":
            raise ValueError("Conv cannot run in FP32; output_data_type FP32 gives float outputs")
        if "output_data_type" in self.model_fields_set and types - {"Conv"}:
            raise ValueError(f"output_data_type is for Conv, not for {sorted(types - {'Conv'})}")
        return self


class QuantConfig(Section):
    """How the graph is quantised."""

    input_configs: list[InputConfig] = []
    calibration_method: Literal["MinMax", "Percentile", "MSE", "KL"] = "MinMax"
    precision_analysis: bool = False
    precision_analysis_method: Literal["PerLayer", "EndToEnd"] = "PerLayer"
    precision_analysis_mode: Literal["Reference", "NPUBackend"] = "Reference"
    input_sample_dir: str = ""
    highest_mix_precision: bool = False
    conv_bias_data_type: Literal["S32", "FP32"] = "S32"
    ln_scale_data_type: Literal["FP32", "S32", "U32"] = "FP32"
    refine_weight_threshold: Annotated[float, Field(lt=1e-4)] = 1e-6
    enable_smooth_quant: bool = False
    smooth_quant_threshold: Annotated[float, Field(ge=0, le=1)] = 0.2
    smooth_quant_strength: float = 0.6
    transformer_opt_level: Annotated[int, Field(ge=0, le=2)] = 0
    check: Annotated[int, Field(ge=0, le=1)] = 0
    disable_auto_refine_scale: bool = False
    enable_easy_quant: bool = False
    disable_quant_optimization: bool = False
    enable_brecq: bool = False
    enable_lsq: bool = False
    enable_adaround: bool = False
    finetune_epochs: Annotated[int, Field(ge=1)] = 500
    finetune_block_size: Annotated[int, Field(ge=1)] = 4
    finetune_batch_size: Annotated[int, Field(ge=1)] = 1
    finetune_lr: Annotated[float, Field(gt=0)] = 1e-3
    device: Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")] = "cpu"
    layer_configs: list[LayerConfig] = []

    @model_validator(mode="after")
    def _one_config_per_input(self) -> QuantConfig:
        check_unique([config.tensor_name for config in self.input_configs])
        return self


class ExtraShape(Section):
    """One more shape that an input is compiled for."""

    shape: list[int]


class InputProcessor(Section):
    """What is done to an input on the device before the graph sees it.

    ``tensor_`` fields tell what the graph takes, ``src_`` fields what the host feeds.
    """

    tensor_name: str
    tensor_format: TensorFormat = "AutoColorSpace"
    tensor_layout: Layout = "NCHW"
    src_format: SourceFormat = "AutoColorSpace"
    src_dtype: Literal["FP32", "U8", "S8", "U16", "S16", "U32", "S32", "FP16"] = "FP32"
    src_layout: Layout = "NCHW"
    src_extra_shapes: list[ExtraShape] = []
    csc_mode: Literal["NoCSC", "Matrix", "FullRange", "LimitedRange"] = "NoCSC"
    csc_mat: list[float] = []
    mean: list[float] = []
    std: list[float] = []
    padding: list[int] = []
    padding_mode: Literal["constant"] = "constant"
    padding_constant_value: int = 0
    slicing: list[int] = []
    scale: float = 0
    zeropoint: int = 0

    @model_validator(mode="after")
    def _agrees(self) -> InputProcessor:
        check_normalisation(self.mean, self.std)
        if self.csc_mode == "Matrix" and len(self.csc_mat) != 12:
            raise ValueError(f"csc_mode Matrix takes 12 numbers (3 x 4), not {len(self.csc_mat)}")
        return self


class OutputProcessor(Section):
    """What is done to an output on the device after the graph."""

    tensor_name: str
    tensor_layout: Layout = "NCHW"
    dst_perm: list[int] = []
    output_dtype: Literal["FP32", "U8"] = "FP32"


class ConstProcessor(Section):
    """Another value for a constant of the graph."""

    name: str
    data: list[float] = []
    data_path: str = ""


class OpProcessor(Section):
    """Other attributes for an operator of the graph."""

    op_name: str
    attrs: dict[str, Any]


class OnnxOptions(Section):
    """What the tool does to the ONNX file first."""

    disable_onnx_optimization: bool = False
    enable_onnxsim: bool = False
    model_check: bool = False
    disable_transformation_check: bool = False
    save_tensors_data: bool = False


class Compiling(Section):
    """Compiling and its self-checks; `check`: 0 none, 1 all close, 2 equal, 3 cosine."""

    static_batch_sizes: list[int] = []
    max_dynamic_batch_size: Annotated[int, Field(ge=0)] = 0
    ddr_bw_limit: Annotated[float, Field(ge=0)] = 0
    disable_ir_fix: bool = False
    check: Annotated[int, Field(ge=0, le=3)] = 0
    npu_perf: bool = False
    check_mode: Literal["CheckOutput", "CheckPerLayer"] = "CheckOutput"
    check_rtol: float = 1e-5
    check_atol: float = 0
    check_cosine_simularity: float = 0.999  # the tool's spelling
    check_tensor_black_list: list[str] = []
    input_sample_dir: str = ""
    enable_slice_mode: bool = False
    enable_tile_mode: bool = False
    enable_data_soft_compression: bool = False
    compiler_group_patterns: list[dict[str, Any]] = []


class SubgraphCompiling(Compiling):
    """Other options for a part of the graph, named in its form after the front end."""

    start_tensor_names: list[str]
    end_tensor_names: list[str]


class CompilerConfig(Compiling):
    """The options of the whole graph, and of parts that differ."""

    sub_configs: list[SubgraphCompiling] = []


class DebugConfig(Section):
    """What the tool writes for people who look into a build."""

    dump_frontend_graph: bool = False


class BuildConfig(Section):
    """The whole file."""

    input: str = ""
    output_dir: str = ""
    output_name: str = "compiled.axmodel"
    work_dir: str = ""
    model_type: Literal["ONNX", "QuantAxModel", "QuantONNX"] = "ONNX"
    target_hardware: Literal["AX650", "M76H", "AX620E", "AX615", "AX637", "M57", "AX8860"] = "AX650"
    npu_mode: Literal["NPU1", "NPU2", "NPU3", "NPU4"] = "NPU1"
    input_shapes: str = ""
    onnx_opt: OnnxOptions = OnnxOptions()
    quant: QuantConfig = QuantConfig()
    input_processors: list[InputProcessor] = []
    output_processors: list[OutputProcessor] = []
    const_processors: list[ConstProcessor] = []
    op_processors: list[OpProcessor] = []
    quant_op_processors: list[OpProcessor] = []
    debug: DebugConfig = DebugConfig()
    compiler: CompilerConfig = CompilerConfig()

    @model_validator(mode="after")
    def _agrees(self) -> BuildConfig:
        if self.npu_mode not in NPU_MODES[self.target_hardware]:
            raise ValueError(f"{self.target_hardware} has no NPU mode {self.npu_mode}")
        check_unique([processor.tensor_name for processor in self.input_processors])
        check_unique([processor.tensor_name for processor in self.output_processors])
        return self

    def to_json(self) -> str:
        """Return the file's text: the fields that were set, two spaces deep."""
        return json.dumps(self.model_dump(exclude_unset=True), indent=2) + "\n"
