"""The language model side of a model: embedding, build arguments, prompts, decoder stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        scale: Factor that the runtime must multiply rows by after looking them up; 1 for most
            models.
        factor: Factor that rows are multiplied by when the embedding files are written; 1 copies
            them.
    """

    key: str
    shape: Shape
    scale: float = 1.0
    factor: float = 1.0


@dataclass(frozen=True)
class LlmCheckpoint:
    """A checkpoint of the language model alone, written for a builder to read.

    Attributes:
        config: Content of its ``config.json``.
        tensors: Name in the new checkpoint to canonical key and factor. A tensor with factor 1 is
            copied. Any other is multiplied and stored in float32, because the product would lose
            digits in the original precision.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class LlmBuildArgs:
    """Arguments of a language-model build, in the terms of Pulsar2's ``llm_build``.

    Attributes:
        prefill_len, kv_cache_len, last_kv_cache_len: See `Profile`.
        model_type: Model type passed to the builder; None lets it read ``config.json``.
        hidden_state_type, weight_type: Precision of activations between layers and of weights.
        parallel: Worker processes; 32 need more than 32 GB.
        check_level: 0 checks nothing, 1 the cosine of each layer, 2 generated text.
        checkpoint: Checkpoint that is written into the bundle for the builder; None lets it read
            the original.
        notes: What users should know before they rely on the build, one line each.
    """

    prefill_len: int
    kv_cache_len: int
    last_kv_cache_len: tuple[int, ...] = ()
    model_type: str | None = None
    hidden_state_type: str = "bf16"
    weight_type: str = "s8"
    parallel: int = 8
    check_level: int = 0
    checkpoint: LlmCheckpoint | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, profile: Profile, **others: Any) -> LlmBuildArgs:
        """Return arguments with the lengths of `profile`; `others` are further attributes."""
        lengths = (profile.prefill_len, profile.kv_cache_len, profile.last_kv_cache_len)
        return cls(*lengths, **others)


@dataclass(frozen=True)
class Prompt:
    """A conversation, encoded for the language model.

    Attributes:
        input_ids: int64 ``[n]``, placeholders included.
        position_ids: int64 ``[1, n]``, or ``[3, n]`` (temporal, height, width).
        vision_rows: Component name to the indices in `input_ids` (int64 ``[m]``) that its output
            rows replace. Rows of consecutive runs are concatenated; those after the first m are
            padding.
        images: Component name to the samples that it runs on, in order, each in the form that
            `make_calib` yields. Components after it receive its features.
        stop_ids: Tokens that end an answer, in addition to those in the checkpoint's config.
    """

    input_ids: np.ndarray[Any, Any]
    position_ids: np.ndarray[Any, Any]
    vision_rows: Mapping[str, np.ndarray[Any, Any]]
    images: Mapping[str, Sequence[Sample]]
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoder:
    """The language model as stages, for toolchains without a language-model builder of their own.

    Attributes:
        kind: Prefix of the names of the layer files, e.g. ``llama``.
        layers: One stage per layer. ``forward(K_cache, V_cache, indices, input, mask)`` takes
            ``[1, h, D]`` twice, int64 ``[r, n]``, ``[1, n, H]`` and ``[1, n, h + n]``. It returns
            the cache rows of the n tokens, ``[1, n, D]`` twice, and the layer's output
            ``[1, n, H]``. All floats are float32; h and n differ from call to call.
        head: ``forward(input)`` applies the final norm and the output head to ``[1, 1, H]`` and
            returns logits ``[1, 1, vocabulary]``.
        width: H, hidden size.
        cache_width: D, key/value heads times head size.
        position_rows: r of a prefill chunk: 1, or 3 (temporal, height, width). A single token
            always comes with r = 1.
        checkpoint: Checkpoint that the stages' weights are read from.
    """

    kind: str
    layers: tuple[Stage, ...]
    head: Stage
    width: int
    cache_width: int
    position_rows: int
    checkpoint: Checkpoint
