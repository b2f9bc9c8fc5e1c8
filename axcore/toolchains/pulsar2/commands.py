"""The command lines of Pulsar2, as words; paths are relative to the bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from .chips import Chip

if TYPE_CHECKING:
    from ...language_model import LlmBuildArgs
    from ..contract import BuildRequest, GraphFile

Generation = Literal["llm_build2", "llm_build"]

GENERATIONS: dict[Generation, str] = {"llm_build2": "--max_context", "llm_build": "--kv_cache_len"}
"""Names of the language-model builder, newest first, to a flag that only this one has."""

BUILD_FOLDER = "build"
LLM_STEP = "llm"

_CONV_EU = ("AX650", "M76H")

# Published builds leave the mode out and run as this one.
_LLM_NPU_MODE = "NPU3"


def config_file(graph: GraphFile) -> str:
    """Name of the configuration file of `graph`."""
    return f"{graph.stem}.pulsar2.json"


def axmodel_file(graph: GraphFile) -> str:
    """Name of what `graph` becomes."""
    return f"{graph.stem}.axmodel"


def output_folder(step: str) -> str:
    """Folder that the tool fills in `step`."""
    return f"{BUILD_FOLDER}/{step}"


def graph_command(graph: GraphFile, request: BuildRequest) -> list[str]:
    """Return what follows the tool's name to build `graph`."""
    chip = Chip.of(request.options)
    return [
        "build",
        *("--input", f"{graph.stem}.onnx"),
        *("--config", config_file(graph)),
        *("--output_dir", output_folder(graph.stem)),
        *("--output_name", axmodel_file(graph)),
        *("--target_hardware", chip.name),
        *("--npu_mode", chip.npu_mode),
        *("--compiler.check", _check(graph, request)),
    ]


def _check(graph: GraphFile, request: BuildRequest) -> str:
    """Return the level of the compiler's self-check: the user's, or what the bits call for.

    A 16-bit activation whose range shrinks may overflow. Level 2 stops such a build; with 0 it
    succeeds and the board refuses to run it (seen in eight builds of a vocoder).
    """
    from .config import config_for
    from .remarks import bits

    default = "2" if bits(config_for(graph, request)) == 16 else "0"
    return request.options.get("compiler-check", default)


def variables(request: BuildRequest) -> dict[str, str]:
    """Return the environment variables of the language model's builder.

    Products of matrices then run on the convolution unit, which Pulsar2's manual chooses for AX650:
    as published, the first token of a 1B model then came after 883 ms instead of 4951. M76H has
    the operators and NPU modes of AX650.
    """
    return {"FLOAT_MATMUL_USE_CONV_EU": "1"} if Chip.of(request.options).name in _CONV_EU else {}


def llm_args(request: BuildRequest) -> LlmBuildArgs:
    """Return the build arguments of the language model, with what the user chose instead."""
    given: dict[str, Any] = {
        name.replace("-", "_"): value
        for name in ("weight-type", "hidden-state-type")
        if (value := request.options.get(name))
    }
    parallel = int(request.options.get("parallel", request.llm.parallel))
    return replace(request.llm, parallel=parallel, **given)


def llm_flags(generation: Generation, request: BuildRequest) -> list[str]:
    """Return what follows ``<generation> --input_path <checkpoint>``.

    The generations count differently: where ``llm_build`` has `C` cache slots, ``llm_build2`` has
    a context of C + 1 positions; where the one names a chunk and the histories before it, the
    other names the step and the longest prompt, which is the longest history and one more chunk.
    """
    args, chip = llm_args(request), Chip.of(request.options)
    flags = ["--output_path", output_folder(LLM_STEP)]
    flags += ["--hidden_state_type", args.hidden_state_type]
    flags += _lengths(generation, args)
    flags += ["--parallel", str(args.parallel), "--chip", chip.name]
    if chip.npu_mode != _LLM_NPU_MODE:
        flags += ["--npu_mode", chip.npu_mode]
    if args.weight_type != "s8":
        flags += ["--weight_type", args.weight_type]
    if args.check_level:
        flags += ["--check_level", str(args.check_level)]
    if args.model_type is not None:
        flags += ["--model_type", args.model_type]
    return flags


def _lengths(generation: Generation, args: LlmBuildArgs) -> list[str]:
    if generation == "llm_build2":
        longest = max(args.last_kv_cache_len, default=0) + args.prefill_len
        return [
            *("--max_context", str(args.kv_cache_len + 1)),
            *("--prefill_step_size", str(args.prefill_len)),
            *("--prefill_len", str(longest)),
        ]
    flags = ["--prefill_len", str(args.prefill_len), "--kv_cache_len", str(args.kv_cache_len)]
    for history in args.last_kv_cache_len:
        flags += ["--last_kv_cache_len", str(history)]
    return flags
