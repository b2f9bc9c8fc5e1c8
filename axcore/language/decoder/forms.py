"""The forms of all layers, from the config and from what the tensors show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...checkpoint.quantised import float_keys
from ...plain import shown
from ..architectures import unbuilt
from ..layer_types import CONVOLUTION, FULL, LINEAR, SLIDING, layer_types, rotated
from ..rotary import rotary
from ..standalone import folded_scale
from .attention import Heads
from .delta import Memory
from .layer import Convolution, Form
from .mlp import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...job import Job
    from ..architectures import Architecture


def forms(
    job: Job, architecture: Architecture, config: Mapping[str, Any], body: str
) -> tuple[Form, ...]:
    """Return the form of every layer.

    Args:
        job: Its checkpoint shows which projections have biases; its profile, how long a context
            and a chunk can be.
        architecture: Of the language model.
        config: Of the language model, with defaults.
        body: Prefix of the module that has the layers.

    Raises:
        KeyError: The config lacks a field.
        UnsupportedModel: A setting is not implemented.
    """
    reader = _Reader(job, architecture, config, body)
    rotates = rotated(config)
    return tuple(
        reader.form(index, kind, rotates[index]) for index, kind in enumerate(layer_types(config))
    )


class _Reader:
    def __init__(
        self, job: Job, architecture: Architecture, config: Mapping[str, Any], body: str
    ) -> None:
        self._profile, self._architecture = job.profile, architecture
        self._config, self._body = config, body
        self._keys = set(float_keys(job.checkpoint))

    def form(self, index: int, kind: str, rotates: bool) -> Form:
        """Return the form of a layer of the type `kind`."""
        config, architecture = self._config, self._architecture
        activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
        activation = architecture.activations.get(activation, activation)
        if activation not in ACTIVATIONS:
            raise unbuilt(f"the activation {shown(activation)}")
        return Form(
            hidden=config["hidden_size"],
            inner=_inner(config),
            eps=self._eps,
            zero_centred=architecture.zero_centred,
            norms=architecture.norms,
            activation=activation,
            mlp_bias=self._has(index, "mlp.gate_proj.bias"),
            residual=folded_scale("o_proj.weight", config) * config.get("residual_multiplier", 1),
            mixer=self._mixer(index, kind, rotates),
            window=self._window(kind),
        )

    def _window(self, kind: str) -> int | None:
        """Return how many tokens a token sees; None where the whole context fits."""
        if kind != SLIDING:
            return None
        if "sliding_window" not in self._config or self._config.get("use_sliding_window") is False:
            raise unbuilt(f"layers of the type {shown(kind)} and no window")
        window = int(self._config["sliding_window"])
        return window if window <= self._profile.kv_cache_len else None

    @property
    def _eps(self) -> float:
        name = "norm_eps" if "norm_eps" in self._config else "rms_norm_eps"
        return float(self._config[name])

    def _has(self, index: int, name: str) -> bool:
        return f"{self._body}layers.{index}.{name}" in self._keys

    def _mixer(self, index: int, kind: str, rotates: bool) -> Heads | Memory | Convolution:
        if kind in (FULL, SLIDING):
            return self._heads(index, kind, rotates)
        if kind == LINEAR and "linear_num_key_heads" in self._config:
            return self._memory()
        if kind == CONVOLUTION and "conv_L_cache" in self._config:
            return Convolution(self._config["conv_L_cache"], self._has(index, "conv.conv.bias"))
        raise unbuilt(f"layers of the type {shown(kind)}")

    def _heads(self, index: int, kind: str, rotates: bool) -> Heads:
        config, architecture = self._config, self._architecture
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        head_dim = config.get("head_dim") or hidden // heads
        return Heads(
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            scale=_scale(config, head_dim),
            cap=config.get("attn_logit_softcapping"),
            bias=self._has(index, "self_attn.q_proj.bias"),
            out_bias=self._has(index, "self_attn.o_proj.bias"),
            norms=architecture.qk_norm,
            eps=self._eps,
            zero_centred=architecture.zero_centred,
            gate=architecture.gate,
            rotary=rotary(
                config,
                head_dim,
                self._profile.kv_cache_len + 1,
                layer_type=kind,
                interleaved=architecture.interleaved,
            )
            if rotates
            else None,
        )

    def _memory(self) -> Memory:
        config = self._config
        key_heads, value_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
        if value_heads % key_heads:
            raise unbuilt(f"{value_heads} heads of values for {key_heads} of keys")
        return Memory(
            hidden=config["hidden_size"],
            key_heads=key_heads,
            key_dim=config["linear_key_head_dim"],
            value_heads=value_heads,
            value_dim=config["linear_value_head_dim"],
            kernel=config["linear_conv_kernel_dim"],
            eps=self._eps,
            chunk=self._profile.prefill_len,
        )


def _scale(config: Mapping[str, Any], head_dim: int) -> float:
    """Return the factor of attention scores."""
    if "attention_multiplier" in config:
        return float(config["attention_multiplier"])
    return float(config.get("query_pre_attn_scalar", head_dim) ** -0.5)


def _inner(config: Mapping[str, Any]) -> int:
    """Return the width of the MLP.

    Source: transformers, ``Lfm2MLP``, for configs that give it before it is adjusted.
    """
    inner = int(config.get("block_ff_dim") or config["intermediate_size"])
    if not config.get("block_auto_adjust_ff_dim"):
        return inner
    step = int(config["block_multiple_of"])
    widened = int(config.get("block_ffn_dim_multiplier", 1) * int(2 * inner / 3))
    return math.ceil(widened / step) * step
