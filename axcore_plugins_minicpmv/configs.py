"""What a ``config.json`` of each model must be like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axcore import Count, Layers, Positive, Token, Vit

HEAD_DIM = 128
"""Of the resampler, upstream's constant."""


@dataclass(frozen=True)
class Siglip(Vit):
    """A tower; what the preprocessing takes for granted can have one value only."""

    patch_size: Literal[14]
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class _Resampled:
    """What models with a resampler have at the top."""

    hidden_size: Count
    query_num: Count
    drop_vision_last_layer: bool
    bos_token_id: Token

    def __post_init__(self) -> None:
        if self.hidden_size % HEAD_DIM:
            raise ValueError(f"hidden_size: {self.hidden_size} is no multiple of {HEAD_DIM}")


@dataclass(frozen=True)
class V2(_Resampled):
    """MiniCPM-V-2, of whose tower there is the name alone."""

    vision_encoder: str
    eos_token_id: Token
    num_hidden_layers: Layers
    dim_model_base: Count
    scale_depth: Positive
    scale_emb: Positive


@dataclass(frozen=True)
class V4(_Resampled):
    """MiniCPM-V-4: its embedding is used as it is stored."""

    vision_config: Siglip
    eos_token_id: tuple[Token, ...]
    scale_emb: Literal[1] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.eos_token_id) != 2:
            raise ValueError(f"eos_token_id: {len(self.eos_token_id)} ids instead of two")


@dataclass(frozen=True)
class V46Tower(Siglip):
    """The tower of MiniCPM-V-4.6, with a merger of 2 x 2 patches in it."""

    window_kernel_size: tuple[Literal[2], ...] = (2, 2)


@dataclass(frozen=True)
class V46Text:
    """The hybrid language model: dimensions of its tensors."""

    bos_token_id: Token
    eos_token_id: Token
    head_dim: Count
    intermediate_size: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    linear_conv_kernel_dim: Count
    linear_key_head_dim: Count
    linear_num_key_heads: Count
    linear_num_value_heads: Count
    linear_value_head_dim: Count
    model_type: str
    vocab_size: Count
    attn_output_gate: Literal[True] = True


@dataclass(frozen=True)
class V46:
    """MiniCPM-V-4.6."""

    vision_config: V46Tower
    text_config: V46Text
    insert_layer_id: int
    image_token_id: Token
    video_token_id: Token
    tie_word_embeddings: bool
    merge_kernel_size: tuple[Literal[2], ...] = (2, 2)
    merger_times: Literal[1] = 1
    drop_vision_last_layer: Literal[False] = False

    def __post_init__(self) -> None:
        layers = self.vision_config.num_hidden_layers
        if not 0 <= self.insert_layer_id < layers:
            raise ValueError(f"insert_layer_id: {self.insert_layer_id} is none of {layers} layers")
        for sides in (self.merge_kernel_size, self.vision_config.window_kernel_size):
            if len(sides) != 2:
                raise ValueError(f"merge_kernel_size: {len(sides)} sides instead of two")
