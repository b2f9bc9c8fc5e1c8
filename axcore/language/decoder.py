"""The default `decoder`: layers and head of Llama and similar models.

A layer receives its history as an argument and returns the rows to add to it, so the caller owns
the cache. Parameters have the names of transformers. Whether projections have biases, and queries
and keys a norm, follows from the checkpoint's tensors.

Supported are grouped-query attention with any head size, biases, norms of queries and keys, rotary
positions in one row or three, and scales of residuals and logits.

Source: transformers, ``LlamaDecoderLayer`` and the decoder layers of its descendants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.quantised import float_keys
from ..component import Stage
from ..errors import UnsupportedModel
from ..language_model import Decoder, Embedding
from ..plain import shown
from .embedding import HEAD_KEYS, find_embedding
from .layer_types import other_layers
from .rotary import inverse_frequencies, sections
from .standalone import HEAD, body_of, folded_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..checkpoint import Checkpoint
    from ..job import Job

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
# Settings of other architectures that change what a layer computes, and what leaves it as it is.
_FOREIGN: Mapping[str, object] = {
    "attention_multiplier": None,
    "attn_logit_softcapping": None,
    "clip_qkv": None,
    "embedding_multiplier": 1,
    "final_logit_softcapping": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "no_rope_layers": None,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1,
}
_HINT = "build the language model with a toolchain that has its own builder"


@dataclass(frozen=True)
class Shape:
    """The dimensions and variants of a decoder.

    Attributes:
        hidden, inner: Widths of the state and of the MLP.
        heads, kv_heads, head_dim: Query heads, key/value heads, width of a head.
        eps: Epsilon of every RMSNorm.
        activation: Name of the MLP's gate activation.
        bias, out_bias, mlp_bias: Whether q, k and v, o, and the MLP have biases.
        norms: Whether q and k have norms.
        residual: Factor applied to what attention and MLP add to the state.
        frequencies: float64 ``[head_dim / 2]``, radians per position.
        attention_factor: Factor of cosine and sine.
        sections: For each frequency, which of the three rows of positions it uses; None if there
            is only one row.
    """

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    activation: str
    bias: bool
    out_bias: bool
    mlp_bias: bool
    norms: bool
    residual: float
    frequencies: tuple[float, ...]
    attention_factor: float
    sections: tuple[int, ...] | None


def default_decoder(job: Job, embedding: Embedding | None = None) -> Decoder:
    """Return the decoder that config and tensors describe.

    Args:
        job: Its checkpoint has the layers beside the embedding.
        embedding: What the family says of it; None looks for it.

    Raises:
        UnsupportedModel: The layers have tensors, or the config has settings, that this decoder
            does not implement.
    """
    config, checkpoint = job.text_config, job.checkpoint
    others = other_layers(config)
    _refuse(bool(others), others)
    key = (embedding or find_embedding(checkpoint, job.config)).key
    head, prefix = _head_key(job, key), body_of(key)
    try:
        shape = _shape(job, prefix)
    except KeyError as error:
        _refuse(True, f"no {error} in its config")
    depth = config["num_hidden_layers"]
    layers = tuple(
        Stage(f"layers.{index}", Layer(shape), f"{prefix}layers.{index}.", "layer")
        for index in range(depth)
    )
    for layer in layers:
        _check_tensors(layer, checkpoint)
    vocabulary = checkpoint.info(head).shape[0]
    return Decoder(
        kind=str(config.get("model_type") or job.config["model_type"]),
        layers=layers,
        head=Stage(
            "post",
            Head(shape, vocabulary, folded_scale(HEAD, config)),
            {"norm.weight": f"{prefix}norm.weight", "lm_head.weight": head},
        ),
        width=shape.hidden,
        cache_width=shape.kv_heads * shape.head_dim,
        position_rows=3 if shape.sections else 1,
        checkpoint=checkpoint,
    )


def _head_key(job: Job, embedding: str) -> str:
    """Return the key of the output head: the embedding's, where the checkpoint has no other."""
    keys = float_keys(job.checkpoint)
    own = [key for key in keys if key.startswith(job.card.layout.text_prefixes)]
    named = [key for key in HEAD_KEYS if key in keys] + [key for key in own if key.endswith(HEAD)]
    return next(iter(named), embedding)


def _shape(job: Job, prefix: str) -> Shape:
    config = {name: value for name, value in job.text_config.items() if value is not None}
    tensors = float_keys(job.checkpoint)
    first = f"{prefix}layers.0."
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    activation = config.get("hidden_act", "silu")
    _refuse(activation not in _ACTIVATIONS, f"the activation {shown(activation)}")
    context = job.profile.kv_cache_len + 1
    window = config.get("sliding_window", context) if "use_sliding_window" not in config else None
    _refuse(bool(config.get("use_sliding_window")), "a sliding window")
    _refuse(window is not None and window < context, f"a sliding window of {window} positions")
    for name, neutral in _FOREIGN.items():
        value = config.get(name)
        _refuse(value not in (None, neutral), f"`{name}` {shown(value)}")
    frequencies, factor = inverse_frequencies(config, head_dim, context)
    return Shape(
        hidden=hidden,
        inner=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        eps=config["rms_norm_eps"],
        activation=activation,
        bias=f"{first}self_attn.q_proj.bias" in tensors,
        out_bias=f"{first}self_attn.o_proj.bias" in tensors,
        mlp_bias=f"{first}mlp.gate_proj.bias" in tensors,
        norms=f"{first}self_attn.q_norm.weight" in tensors,
        residual=folded_scale("o_proj.weight", config),
        frequencies=frequencies,
        attention_factor=factor,
        sections=sections(config, head_dim),
    )


def _check_tensors(layer: Stage, checkpoint: Checkpoint) -> None:
    """Refuse unknown tensors: leaving one out would silently change the model."""
    assert isinstance(layer.keys, str)
    held = {key for key in float_keys(checkpoint) if key.startswith(layer.keys)}
    taken = {key for weight in layer.weights().values() for key in weight.keys()}
    if odd := sorted(held ^ taken):
        verb = "lacks" if odd[0] in taken else "holds"
        _refuse(True, f"a layer that {verb} `{odd[0]}`")


def _refuse(unfit: bool, what: str) -> None:
    if unfit:
        raise UnsupportedModel(
            f"the language model has {what}; layers of this kind are not built here", hint=_HINT
        )


class Layer(nn.Module):
    """One decoder layer; see `Decoder` for its inputs and outputs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.residual = shape.residual
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.mlp = MLP(shape)

    def forward(
        self, k_cache: Tensor, v_cache: Tensor, indices: Tensor, state: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply attention over history and chunk, then the MLP."""
        batch = state.shape[0]
        # As a matrix of rows, so that targets can use the weights in the order of the file.
        rows = state.reshape(-1, state.shape[-1])
        normed = self.input_layernorm(rows)
        key, value, seen = self.self_attn(k_cache, v_cache, indices, normed, mask)
        rows = rows + self._scaled(seen)
        rows = rows + self._scaled(self.mlp(self.post_attention_layernorm(rows)))
        key, value, state = (t.reshape(batch, -1, t.shape[-1]) for t in (key, value, rows))
        return key, value, state

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.residual == 1 else added * self.residual


class Attention(nn.Module):
    """Grouped-query attention over a history and the chunk behind it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, wide, shape.bias, device="meta")
        self.k_proj = nn.Linear(shape.hidden, narrow, shape.bias, device="meta")
        self.v_proj = nn.Linear(shape.hidden, narrow, shape.bias, device="meta")
        self.o_proj = nn.Linear(wide, shape.hidden, shape.out_bias, device="meta")
        if shape.norms:
            self.q_norm = RMSNorm(shape.head_dim, shape.eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.eps)

    def forward(
        self, k_cache: Tensor, v_cache: Tensor, indices: Tensor, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for each row, keys ``[D]``, values ``[D]`` and the attention output ``[H]``."""
        shape, (batch, count, _) = self.shape, mask.shape
        kv_heads, width = shape.kv_heads, shape.head_dim
        q = self.q_proj(x).reshape(batch, count, shape.heads, width)
        k = self.k_proj(x).reshape(batch, count, kv_heads, width)
        if shape.norms:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = self._rotation(indices)
        q, k, value = rotate(q, cos, sin), rotate(k, cos, sin), self.v_proj(x)
        # Query heads that share keys are stacked as rows, so the long history is not repeated.
        shared = (batch, count, kv_heads, shape.heads // kv_heads, width)
        query = (q * width**-0.5).reshape(shared).permute(0, 2, 3, 1, 4)
        query = query.reshape(batch, kv_heads, -1, width)
        past, old, new = (self._heads(t, batch) for t in (k_cache, v_cache, value))
        scores = torch.cat([query @ past.mT, query @ k.transpose(1, 2).mT], -1)
        grouped = scores.reshape(batch, kv_heads, -1, count, scores.shape[-1])
        weights = torch.softmax(grouped + mask[:, None, None], -1).reshape(scores.shape)
        length = k_cache.shape[1]
        seen = weights[..., :length] @ old + weights[..., length:] @ new
        seen = seen.reshape(batch, kv_heads, -1, count, width).permute(0, 3, 1, 2, 4)
        joined = seen.reshape(-1, shape.heads * width)
        return k.reshape(-1, kv_heads * width), value, self.o_proj(joined)

    def _heads(self, rows: Tensor, batch: int) -> Tensor:
        """View ``[..., D]`` as ``[batch, kv_heads, rows, head_dim]``."""
        split = rows.reshape(batch, -1, self.shape.kv_heads, self.shape.head_dim)
        return split.transpose(1, 2)

    def _rotation(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``[n, 1, head_dim]``; the sine's first half is negated."""
        shape = self.shape
        frequencies = torch.tensor(shape.frequencies, dtype=torch.float32)
        if shape.sections is None:
            positions = indices[0][:, None]
        else:
            positions = indices[list(shape.sections)].T
        angles = positions.float() * frequencies
        cos, sin = (f(angles) * shape.attention_factor for f in (torch.cos, torch.sin))
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``[n, heads, width]``; the first half of `sin` is negated already."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin


class MLP(nn.Module):
    """The gated feed-forward network."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[shape.activation]
        sizes: dict[str, Any] = {"bias": shape.mlp_bias, "device": "meta"}
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, **sizes)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, **sizes)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, **sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, H]`` to ``[n, H]``."""
        result: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return result


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis, with weights."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="meta"))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., width]``."""
        return self.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps))


class Head(nn.Module):
    """Final norm and output head, ``[1, 1, H]`` to ``[1, 1, vocabulary]``."""

    def __init__(self, shape: Shape, vocabulary: int, factor: float) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.hidden, shape.eps)
        self.lm_head = nn.Linear(shape.hidden, vocabulary, bias=False, device="meta")
        self.factor = factor

    def forward(self, state: Tensor) -> Tensor:
        """Return the logits of the next token."""
        rows = self.norm(state.reshape(-1, state.shape[-1])) * self.factor
        logits: Tensor = self.lm_head(rows)
        return logits[:, None]
