"""A decoder layer around whatever mixes the tokens, and the output head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .attention import Attention, Heads
from .convolution import ShortConvolution
from .delta import GatedDeltaNet, Memory
from .mlp import MLP
from .norms import RMSNorm

if TYPE_CHECKING:
    from ...language_model import Cache


@dataclass(frozen=True)
class Convolution:
    """The form of a `ShortConvolution`."""

    kernel: int
    bias: bool


@dataclass(frozen=True)
class Form:
    """The dimensions and variants of a decoder layer.

    Attributes:
        hidden, inner: Widths of the state and of the MLP.
        eps, zero_centred: Of every norm.
        norms: 2, before mixer and MLP, or 4, behind each as well.
        activation: Name of the MLP's gate activation.
        mlp_bias: Whether the MLP has biases.
        residual: Factor applied to what mixer and MLP add to the state.
        mixer: What mixes the tokens.
        window: Tokens that a token sees; None for all.
    """

    hidden: int
    inner: int
    eps: float
    zero_centred: bool
    norms: int
    activation: str
    mlp_bias: bool
    residual: float
    mixer: Heads | Memory | Convolution
    window: int | None


class Layer(nn.Module):
    """One decoder layer; see `Decoder` and `DecoderLayer` for its inputs and outputs."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.residual = form.residual
        self.input_layernorm = _norm(form)
        self.post_attention_layernorm = _norm(form)
        if form.norms == 4:
            self.pre_feedforward_layernorm = _norm(form)
            self.post_feedforward_layernorm = _norm(form)
        self.mixer, mixer = _mixer(form)
        self.add_module(self.mixer, mixer)
        self.mlp = MLP(form.hidden, form.inner, form.activation, bias=form.mlp_bias)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """What the layer keeps."""
        kept: tuple[Cache, ...] = getattr(self, self.mixer).caches
        return kept

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Mix the tokens, then apply the MLP.

        Args:
            given: The caches, indices int64 ``[r, n]``, state ``[b, n, H]``, mask
                ``[b, n, h + n]``.

        Returns:
            Rows or new states of the caches, and the state ``[b, n, H]``.
        """
        *caches, indices, state, mask = given
        # As a matrix of rows, so that targets can use the weights in the order of the file.
        rows = state.reshape(-1, state.shape[-1])
        mixer = getattr(self, self.mixer)
        *kept, mixed = mixer(tuple(caches), indices, self.input_layernorm(rows), mask)
        if hasattr(self, "pre_feedforward_layernorm"):
            rows = rows + self._scaled(self.post_attention_layernorm(mixed))
            made = self.mlp(self.pre_feedforward_layernorm(rows))
            rows = rows + self._scaled(self.post_feedforward_layernorm(made))
        else:
            rows = rows + self._scaled(mixed)
            rows = rows + self._scaled(self.mlp(self.post_attention_layernorm(rows)))
        return (*kept, rows.reshape(state.shape[0], -1, rows.shape[-1]))

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.residual == 1 else added * self.residual


def _norm(form: Form) -> RMSNorm:
    return RMSNorm(form.hidden, form.eps, zero_centred=form.zero_centred)


def _mixer(form: Form) -> tuple[str, nn.Module]:
    """Return what mixes the tokens, and its name in the tensors of the layer."""
    if isinstance(form.mixer, Heads):
        return "self_attn", Attention(form.mixer)
    if isinstance(form.mixer, Memory):
        return "linear_attn", GatedDeltaNet(form.mixer)
    return "conv", ShortConvolution(form.hidden, form.mixer.kernel, bias=form.mixer.bias)


class Head(nn.Module):
    """Final norm and output head, ``[1, 1, H]`` to ``[1, 1, vocabulary]``.

    Args:
        form: Of a layer: width and kind of the norm.
        vocabulary: Number of logits.
        factor: Of the normalised rows.
        cap: Logits are squeezed between -cap and cap; None leaves them.
    """

    def __init__(self, form: Form, vocabulary: int, factor: float, cap: float | None) -> None:
        super().__init__()
        self.norm = _norm(form)
        self.lm_head = nn.Linear(form.hidden, vocabulary, bias=False, device="meta")
        self.factor, self.cap = factor, cap

    def forward(self, state: Tensor) -> Tensor:
        """Return the logits of the next token."""
        rows = self.norm(state.reshape(-1, state.shape[-1])) * self.factor
        logits: Tensor = self.lm_head(rows)
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits[:, None]
