"""What a ``config.json`` of the family must be like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axcore import Count, Layers, RotaryTowerConfig, Token


@dataclass(frozen=True)
class VisionConfig(RotaryTowerConfig):
    """The tower; no features leave it before its end."""

    patch_size: Literal[16]
    temporal_patch_size: Literal[2]
    spatial_merge_size: Literal[2]
    deepstack_visual_indexes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deepstack_visual_indexes:
            raise ValueError("deepstack_visual_indexes: towers of this family have none")


@dataclass(frozen=True)
class TextConfig:
    """The hybrid language model: dimensions of its tensors."""

    eos_token_id: Token
    head_dim: Count
    hidden_size: Count
    intermediate_size: Count
    num_attention_heads: Count
    num_hidden_layers: Layers
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
class Config:
    """The whole."""

    vision_config: VisionConfig
    text_config: TextConfig
    tie_word_embeddings: bool
    image_token_id: Token
    video_token_id: Token
    vision_start_token_id: Token
    vision_end_token_id: Token

    def __post_init__(self) -> None:
        width, hidden = self.vision_config.out_hidden_size, self.text_config.hidden_size
        if width != hidden:
            raise ValueError(
                f"vision_config.out_hidden_size: {width} is not the language model's"
                f" hidden_size {hidden}"
            )
