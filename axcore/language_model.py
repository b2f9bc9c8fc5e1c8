"""The language model side of a model: embedding, build arguments, prompts, decoder stages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
        name: Empty for the embedding that makes the rows of the language model. Other tables have
            a name, by which decoder layers ask for their columns: see `TokenInput`.
    """

    key: str
    shape: Shape
    scale: float = 1.0
    factor: float = 1.0
    name: str = ""


TABLE_NAME = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
"""What a named table is called: it becomes a part of a file's name."""


def table_file(name: str) -> str:
    """Return the file of a bundle that holds a table in bfloat16; the embedding has no name."""
    return f"{name}.table.bfloat16.bin" if name else "model.embed_tokens.weight.bfloat16.bin"


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
        position_ids: int64 ``[r, n]``: one row, or as many as the model has axes, e.g. 3 for
            temporal, height and width.
        vision_rows: Component name to the indices in `input_ids` that its output rows replace, for
            the component at the end of a chain. int64 ``[m]``: m is exactly the number of rows
            that all its runs return, in order. Or a sequence of such arrays, one for each run,
            where some rows are padding: those of the run behind the first ``len(array)``.
        images: Name of the first component of a chain to the samples that it runs on, in order,
            each in the form that `make_calib` yields. Components after it receive its features.
        stop_ids: Tokens that end an answer, in addition to those in the checkpoint's config.
        blocks: int64 ``[n]``: consecutive tokens with the same number above 0 see each other, in
            both directions; 0 is causal, as is None for all. Chunks never cut a block.
    """

    input_ids: np.ndarray[Any, Any]
    position_ids: np.ndarray[Any, Any]
    vision_rows: Mapping[str, np.ndarray[Any, Any] | Sequence[np.ndarray[Any, Any]]]
    images: Mapping[str, Sequence[Sample]]
    stop_ids: tuple[int, ...] = ()
    blocks: np.ndarray[Any, Any] | None = None

    @property
    def places(self) -> dict[str, np.ndarray[Any, Any]]:
        """`vision_rows` with the places of all runs in one array, int64 ``[m]``."""
        import numpy as np

        return {
            name: rows
            if isinstance(rows, np.ndarray)
            else np.concatenate([np.empty(0, np.int64), *rows])
            for name, rows in self.vision_rows.items()
        }


@dataclass(frozen=True)
class Cache:
    """What a decoder layer keeps from one token to the next.

    Attributes:
        name: Of the layer's input; the output is called ``<name>_out``.
        shape: Of one prompt: ``(width,)`` for a cache that grows by a row per token, or the whole
            shape of a state that every run replaces, which begins with zeros.
        grows: Whether each token adds a row (as keys and values do), or each run replaces the
            state (as recurrent layers and convolutions do).
        dtype: "state" for the type of states (bfloat16 on boards); "float32" where rounding would
            add up.
        shared: Index of the earlier layer whose cache of this name is read; None for a cache of
            the layer's own. A layer returns no output for a shared cache. The other layer's rows
            of the tokens at hand are part of what it is given, at the end.
    """

    name: str
    shape: Shape
    grows: bool = True
    dtype: Literal["state", "float32"] = "state"
    shared: int | None = None


@dataclass(frozen=True)
class TokenInput:
    """A further input per token: columns of a table of `embed_extract`, float ``[1, n, width]``.

    Attributes:
        name: Of the layer's input.
        table: `Embedding.name` of the table.
        start, width: Which columns.
    """

    name: str
    table: str
    start: int
    width: int


@dataclass(frozen=True)
class DecoderLayer:
    """A decoder layer that is not a plain one: with other caches, a window, or further inputs.

    ``forward(*caches, indices, input, mask, *inputs)`` takes the caches in order, then what every
    layer takes (see `Decoder`), then its further inputs. It returns the outputs of its own caches,
    rows of the n tokens or the new state, and the layer's output. Padding follows the tokens; a
    layer that replaces its state tells it by the diagonal of the mask's last n columns, which is
    0 for tokens and -65536 for padding.

    Attributes:
        stage: The computation.
        caches: What it keeps. Layers of one model may differ in this.
        window: How many tokens a token sees, itself included; None for all before it. The mask
            that the layer gets says so already.
        inputs: Further inputs per token.
    """

    stage: Stage
    caches: tuple[Cache, ...]
    window: int | None = None
    inputs: tuple[TokenInput, ...] = ()


@dataclass(frozen=True)
class Decoder:
    """The language model as stages, for toolchains without a language-model builder of their own.

    Attributes:
        kind: Prefix of the names of the layer files, e.g. ``llama``.
        layers: One per layer: a stage, or a `DecoderLayer` where a plain one does not do. Of a
            stage, ``forward(K_cache, V_cache, indices, input, mask)`` takes
            ``[1, h, D]`` twice, int64 ``[r, n]``, ``[1, n, H]`` and ``[1, n, h + n]``. It returns
            the cache rows of the n tokens, ``[1, n, D]`` twice, and the layer's output
            ``[1, n, H]``. All floats are float32; h and n differ from call to call.
        head: ``forward(input)`` applies the final norm and the output head to ``[1, 1, H]`` and
            returns logits ``[1, 1, vocabulary]``.
        width: H, hidden size.
        cache_width: D of plain layers, key/value heads times head size.
        position_rows: r of a prefill chunk: 1, or 3 (temporal, height, width), or any other
            number of axes. A single token always comes with r = 1.
        checkpoint: Checkpoint that the stages' weights are read from.
    """

    kind: str
    layers: tuple[Stage | DecoderLayer, ...]
    head: Stage
    width: int
    cache_width: int
    position_rows: int
    checkpoint: Checkpoint

    @property
    def specs(self) -> tuple[DecoderLayer, ...]:
        """Every layer as a `DecoderLayer`; a plain one keeps keys and values."""
        plain = tuple(Cache(name, (self.cache_width,)) for name in ("K_cache", "V_cache"))
        return tuple(
            layer if isinstance(layer, DecoderLayer) else DecoderLayer(layer, plain)
            for layer in self.layers
        )
