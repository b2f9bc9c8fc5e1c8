"""What a language model built by Pulsar2 needs on a board, and how fast it is there.

The bytes of a layer follow from how the builder stores a matrix, and agree with real builds to the
byte. Times and memory are fits to public measurements on the AX650 family, so they are estimates.

Sources: onnxsim/onnxsim ``docs/axera-llm-build-dtype-analysis.md`` and pull request 1246 (layout,
token time, prefill), AXERA-TECH/ax-llm pull request 52 (memory), Pulsar2's documentation of
``llm_build``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from ..contract import Estimate, Forecast
from .chips import Chip
from .commands import llm_args

if TYPE_CHECKING:
    from ...language_model import LlmBuildArgs
    from ..contract import BuildRequest

_LIKE_AX650 = ("AX650", "M76H")

# A row is cut into parts: one of up to 576 inputs, the others of 544. A part is stored in blocks
# of 36 inputs and a few bytes for scale and zero point.
_FIRST_PART, _PART, _BLOCK = 576, 544, 36
_PART_BYTES = {"s8": (36, 16), "s4": (18, 12)}  # of a block, and besides the blocks
_FLOAT_BYTES = 4  # a parameter of any float type, 8-bit ones included

_BYTES_PER_S, _LAYER_S = 21.3e9, 0.40e-3
"""Token time is bytes over the one plus layers times the other."""

_PREFILL_OPS_PER_S = 2 * 177e6 * 128 / 23.5e-3  # one layer of 177 M parameters, 128 tokens
_BUILD_S_PER_PARAMETER = 1e-6
_SMALLEST_MEASURED = 100e6  # parameters; smaller models would be extrapolated
_MEMORY_PER_FILE = 1.3
_LARGEST = 2 << 30  # what a protobuf message may hold
_MEMORIES = {"a card of 8 GB": 7040 << 20, "a board that gives 2 GB to models": 2 << 30}

FIT = (
    "fit to a card of this chip at NPU3; published rates of three models of 0.6, 2 and 3 billion"
    " parameters are met within 12 %, at a full context; not for very small layers"
)


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder whose layers are attention and a gated MLP.

    Attributes:
        layers, hidden, intermediate, vocabulary: As ``config.json`` counts them.
        heads, kv_heads, head_dim: Of the attention.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Decoder | None:
        """Read the language model's part of a config; None for one with other kinds of layers."""
        kinds = config.get("layer_types") or ()
        if any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
            return None
        hidden, heads = (config.get(name) for name in ("hidden_size", "num_attention_heads"))
        if not hidden or not heads:
            return None
        return cls(
            config["num_hidden_layers"],
            hidden,
            config["intermediate_size"],
            config["vocab_size"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
        )

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """The matrices of a layer, ``(rows, inputs)``: q, k, v, o, gate, up, down."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (queries, self.hidden),
            (keys, self.hidden),
            (keys, self.hidden),
            (self.hidden, queries),
            (self.intermediate, self.hidden),
            (self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of the matrices of a layer."""
        return sum(rows * inputs for rows, inputs in self.matrices)

    def layer_bytes(self, weight_type: str) -> int:
        """Bytes of a layer's matrices as the builder stores them."""
        return sum(matrix_bytes(rows, inputs, weight_type) for rows, inputs in self.matrices)

    @property
    def head_bytes(self) -> int:
        """Bytes of the output head, which is s8 whatever the layers are."""
        return matrix_bytes(self.vocabulary, self.hidden, "s8")


def matrix_bytes(rows: int, inputs: int, weight_type: str) -> int:
    """Return the bytes of a matrix ``[rows, inputs]`` in a built layer.

    Args:
        weight_type: As of ``llm_build``: "s8", "s4" or a float type.
    """
    if weight_type not in _PART_BYTES:
        return rows * inputs * _FLOAT_BYTES
    block, besides = _PART_BYTES[weight_type]
    further = max(0, ceil((inputs - _FIRST_PART) / _PART))
    parts = [inputs - _PART * further, *[_PART] * further]
    return rows * sum(block * ceil(part / _BLOCK) + besides for part in parts)


def forecast(
    request: BuildRequest, config: Mapping[str, Any], weight_bytes: Mapping[str, int]
) -> Forecast:
    """See `Forecaster.forecast`."""
    towers = [_too_large(stem, size) for stem, size in weight_bytes.items() if size >= _LARGEST]
    decoder = Decoder.of(config)
    if decoder is None:
        unknown = "no forecast of the language model: it has layers that the formulas do not know"
        return Forecast((), (*towers, unknown))
    args, chip = llm_args(request), Chip.of(request.options)
    tables = 2 * args.kv_cache_len * decoder.head_dim * 4
    layer = decoder.layer_bytes(args.weight_type)
    models = layer * decoder.layers + decoder.head_bytes
    # The vision side's weights are s8 once it is built.
    memory = _MEMORY_PER_FILE * (models + tables * decoder.layers + sum(weight_bytes.values()) / 4)
    parameters = decoder.layer_parameters * decoder.layers + decoder.vocabulary * decoder.hidden
    estimates = [
        Estimate("weights of a layer file", layer, "B", "exact", "reproduces real builds"),
        Estimate("rotary tables of a layer file", tables, "B", "exact", "two tables in float32"),
        Estimate("weights of the output head", decoder.head_bytes, "B", "exact", "always s8"),
        Estimate(
            "memory for models",
            round(memory),
            "B",
            "estimate",
            "axllm takes up to 1.3 times the files; the vision side counted in 8 bits",
        ),
    ]
    if parameters >= _SMALLEST_MEASURED:
        build = "1 s per million parameters: real builds from 135 M to 1.7 B took 0.7 to 1.1"
        seconds = parameters * _BUILD_S_PER_PARAMETER
        estimates.append(Estimate("building the language model", seconds, "s", "estimate", build))
        if chip.name in _LIKE_AX650 and chip.npu_mode == "NPU3":
            estimates += _speed(decoder, args, models)
    notes = (*towers, *_notes(args, memory), *_builder_notes(args, config, decoder))
    return Forecast(tuple(estimates), notes)


def _speed(decoder: Decoder, args: LlmBuildArgs, models: int) -> list[Estimate]:
    prompt = max(args.last_kv_cache_len, default=0) + args.prefill_len
    work = 2 * decoder.layer_parameters * decoder.layers * prompt
    token_s = models / _BYTES_PER_S + decoder.layers * _LAYER_S
    return [
        Estimate("decoding", 1 / token_s, "tokens/s", "estimate", FIT),
        Estimate(
            f"prefill of {prompt} tokens",
            work / _PREFILL_OPS_PER_S,
            "s",
            "estimate",
            "one layer of 177 M parameters took 23.5 ms for 128 tokens; the tower comes on top",
        ),
    ]


def _too_large(stem: str, size: int) -> str:
    return (
        f"{stem}.onnx has {size / 1e9:.1f} GB of weights: above 2 GB the forced optimiser of"
        " Pulsar2 7.0-lite fails (`narrowing_error`), while towers of this size were published"
        " with earlier versions; set `onnx_opt.disable_onnx_optimization`, for the graph is"
        " simplified already, or convert with --split auto"
    )


def _notes(args: LlmBuildArgs, memory: float) -> list[str]:
    notes = [
        f"does not fit {name}: about {memory / 1e9:.1f} GB of {room / 1e9:.1f} GB"
        for name, room in _MEMORIES.items()
        if memory > room
    ]
    if args.weight_type not in _PART_BYTES:
        notes.append(
            f"weight_type {args.weight_type} costs 4 bytes a parameter on the board, as every"
            " float type does; s8 costs one"
        )
    if args.weight_type == "s4":
        notes.append(
            "weight_type s4 has one scale a row: as the builder rounds, answers of two models were"
            " wrong on 8 of 8 prompts (KL 1.02 and 0.48); with GPTQ onto the same rows right on 7"
            " (KL 0.16 and 0.13). Scales of groups, as GPTQ checkpoints have them, do not fit"
        )
    return notes


def _builder_notes(
    args: LlmBuildArgs, config: Mapping[str, Any], decoder: Decoder
) -> Iterator[str]:
    """Yield what is known of the builder for models of this type."""
    kind = str(args.model_type or config.get("model_type"))
    if kind == "mistral":
        yield "the builder refused model type mistral (`model_type error`)"
    width = decoder.heads * decoder.head_dim
    if kind == "llama" and width != decoder.hidden:
        yield (
            "the builder for Llama asserts heads x head_dim == hidden_size; here it is"
            f" {decoder.heads} x {decoder.head_dim} and {decoder.hidden}: the build may stop there"
            " (seen in every version for 12 x 128 and 512; other types with such sizes build)"
        )
