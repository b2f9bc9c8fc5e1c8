"""What a ``config.json`` must be like, and the settings of the image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from axcore import Between, Count, Layers, Token, Vit

Half = Annotated[float, Between(0.5, 0.5)]


@dataclass(frozen=True)
class Tower(Vit):
    """The tower. Published configs leave out what is the default of transformers' class."""

    hidden_size: Count = 1152
    intermediate_size: Count = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Count = 16
    patch_size: Count = 32
    image_size: Count = 224
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class TextConfig:
    """What is read of the language model's part besides what the core reads."""

    vocab_size: Count
    intermediate_size: Count
    model_type: Literal["llama"] = "llama"


@dataclass(frozen=True)
class Config:
    """The whole."""

    vision_config: Tower
    text_config: TextConfig
    image_token_id: Token
    scale_factor: Count = 2
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.vision_config.side % self.scale_factor:
            raise ValueError(
                f"scale_factor: {self.scale_factor} does not divide {self.vision_config.side}, the"
                " patches along a side of a tile"
            )


TEXT_ASSUMED = {"num_attention_heads": 32}  # of transformers' Llama


@dataclass(frozen=True)
class Edge:
    """A length in px."""

    longest_edge: Count


@dataclass(frozen=True)
class Processor:
    """``preprocessor_config.json``: what can be another there, and what cannot."""

    max_image_size: Edge
    size: Edge
    do_image_splitting: bool = True
    resample: Literal[1] = 1  # Lanczos
    image_mean: tuple[Half, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[Half, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.size.longest_edge % self.max_image_size.longest_edge:
            raise ValueError(
                f"size.longest_edge: {self.size.longest_edge} is no multiple of"
                f" max_image_size.longest_edge, {self.max_image_size.longest_edge}"
            )
