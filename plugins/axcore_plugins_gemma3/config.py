"""What a ``config.json`` must be like, and the settings of the image processor."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Annotated, Literal

from axcore import Between, Count, Layers, Token, Vit

Half = Annotated[float, Between(0.5, 0.5)]


@dataclass(frozen=True, kw_only=True)
class Tower(Vit):
    """The tower, without the pooling head that transformers' class has where nothing is said."""

    image_size: Count
    vision_use_head: Literal[False]


@dataclass(frozen=True)
class TextConfig:
    """What is read of the language model's part; the defaults are those of transformers' class."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: Count = 256
    vocab_size: Count = 262_208
    attention_bias: Literal[False] = False
    model_type: Literal["gemma3_text"] = "gemma3_text"


@dataclass(frozen=True)
class Config:
    """The whole."""

    vision_config: Tower
    text_config: TextConfig
    mm_tokens_per_image: Count = 256
    boi_token_index: Token = 255_999
    eoi_token_index: Token = 256_000
    image_token_index: Token = 262_144
    tie_word_embeddings: Literal[True] = True

    def __post_init__(self) -> None:
        vit, tokens = self.vision_config, self.mm_tokens_per_image
        if vit.image_size % vit.patch_size:
            raise ValueError(
                f"vision_config.image_size: {vit.image_size} px are no whole patches of"
                f" {vit.patch_size} px"
            )
        if isqrt(tokens) ** 2 != tokens or vit.side % isqrt(tokens):
            raise ValueError(
                f"mm_tokens_per_image: {tokens} is no square whose side divides {vit.side}, the"
                " patches along a side of an image"
            )

    @property
    def pooled(self) -> int:
        """Patches along a side of the square that becomes a token."""
        return self.vision_config.side // isqrt(self.mm_tokens_per_image)


@dataclass(frozen=True)
class Size:
    """In px."""

    height: Count
    width: Count


@dataclass(frozen=True)
class Processor:
    """``preprocessor_config.json``: what can be another there, and what cannot."""

    size: Size
    image_seq_length: Count | None = None
    do_pan_and_scan: Literal[False] | None = None
    resample: Literal[2] = 2  # bilinear
    image_mean: tuple[Half, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[Half, ...] = (0.5, 0.5, 0.5)
