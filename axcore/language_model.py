"""Values that describe the language model: embedding, build arguments, prompts, decoder stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .component import Shape  # at run time: manifests are read back by these types

if TYPE_CHECKING:
    import numpy as np

    from .checkpoint import Checkpoint
    from .component import Sample, Stage
    from .model_card import Profile


@dataclass(frozen=True)
class Embedding:
    """The token embedding.

    Attributes:
        key: Canonical key in the checkpoint.
        shape: ``[vocabulary, hidden]``.
        scale: Factor that the runtime applies to rows after looking them up; 1 for most models.
        factor: Factor applied once, when the table is written; 1 copies the rows.
    """

    key: str
    shape: Shape
    scale: float = 1.0
    factor: float = 1.0


@dataclass(frozen=True)
class LlmCheckpoint:
    """A checkpoint of the language model alone, written for a builder to read.

    Attributes:
        config: Its ``config.json``.
        tensors: Name in the new checkpoint to canonical key and factor. A tensor with factor 1
            is copied. Others are multiplied in float32 and stored in float32, because the original
            precision could not hold the product.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class LlmBuildArgs:
    """Arguments of a language-model build, in the terms of Pulsar2's ``llm_build``.

    Attributes:
        prefill_len, kv_cache_len, last_kv_cache_len: See `Profile`.
        model_type: Type name given to the builder; None lets it read ``config.json``.
        hidden_state_type, weight_type: Precision of states and weights.
        parallel: Number of worker processes.
        check_level: 0 none, 1 cosine of each layer, 2 generate.
        environment: Environment variables for the builder.
        checkpoint: Written into the bundle for the builder to read; None lets it read the
            original.
        notes: Warnings for the user about this build, one line each.
    """

    prefill_len: int
    kv_cache_len: int
    last_kv_cache_len: tuple[int, ...] = ()
    model_type: str | None = None
    hidden_state_type: str = "bf16"
    weight_type: str = "s8"
    parallel: int = 32
    check_level: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    checkpoint: LlmCheckpoint | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, profile: Profile, **others: Any) -> LlmBuildArgs:
        """Take the lengths from `profile`; `others` are further attributes."""
        lengths = (profile.prefill_len, profile.kv_cache_len, profile.last_kv_cache_len)
        return cls(*lengths, **others)


@dataclass(frozen=True)
class Prompt:
    """A conversation prepared for the language model.

    Attributes:
        input_ids: int64 ``[n]``, placeholders included.
        position_ids: int64 ``[1, n]``, or ``[3, n]`` (temporal, height, width).
        vision_rows: Component name to the positions in `input_ids` (int64 ``[m]``) that its rows
            replace. The rows of all runs are concatenated; those beyond m are padding.
        images: Component name to the samples to run it on, in order, in the form that
            `make_calib` returns. Components behind it receive its features.
        stop_ids: Tokens that end an answer, in addition to those in the checkpoint's config.
    """

    input_ids: np.ndarray[Any, Any]
    position_ids: np.ndarray[Any, Any]
    vision_rows: Mapping[str, np.ndarray[Any, Any]]
    images: Mapping[str, Sequence[Sample]]
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoder:
    """The language model as stages, for toolchains that build its layers themselves.

    Attributes:
        kind: Model type, the first part of the layer files' names, e.g. ``llama``.
        layers: One stage per layer. ``forward(K_cache, V_cache, indices, input, mask)`` with
            ``[1, h, D]`` twice, int64 ``[r, n]``, ``[1, n, H]`` and ``[1, n, h + n]`` returns the
            cache rows of the n tokens, ``[1, n, D]`` twice, and the state behind the layer. All
            floats are float32; h and n differ from call to call.
        head: ``forward(input)`` takes ``[1, 1, H]`` through the final norm and the output head
            and returns logits ``[1, 1, vocabulary]``.
        width: H, hidden size.
        cache_width: D, key/value heads times head size.
        position_rows: r of a prefill chunk: 1, or 3 (temporal, height, width). A single token
            always comes with r = 1.
        checkpoint: Where the stages' weights are read from.
    """

    kind: str
    layers: tuple[Stage, ...]
    head: Stage
    width: int
    cache_width: int
    position_rows: int
    checkpoint: Checkpoint
