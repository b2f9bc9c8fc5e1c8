"""What a ``config.json`` must be like, and the settings of the image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from axcore import Between, Count, Layers, Positive, Token, Vit

MERGE: Final = 2  # patches along each side of the square that becomes a token
PATCH_PX: Final = 16

Half = Annotated[float, Between(0.5, 0.5)]


@dataclass(frozen=True)
class Tower(Vit):
    """The tower, without its pooling head. What is left out is that of transformers' class."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Count = 12
    patch_size: Literal[16] = PATCH_PX
    num_patches: Count = 256
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class TextConfig:
    """What is read of the language model's part besides what the core reads."""

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count = 8
    intermediate_size: Count = 12288
    block_ff_dim: Count | None = None
    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: Positive = 1.0
    block_multiple_of: Count = 256
    conv_L_cache: Count = 3  # noqa: N815
    conv_bias: Literal[False] = False
    layer_types: tuple[Literal["conv", "full_attention"], ...] | None = None
    full_attn_idxs: tuple[int, ...] | None = None
    bos_token_id: Token = 1
    eos_token_id: Token = 7
    model_type: Literal["lfm2"] = "lfm2"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size: not a multiple of {self.num_attention_heads} heads")

    @property
    def attends(self) -> list[bool]:
        """For each layer, whether it has attention; the others are convolutions."""
        if self.layer_types is not None:
            return [kind == "full_attention" for kind in self.layer_types]
        depth = range(self.num_hidden_layers)
        return [self.full_attn_idxs is None or index in self.full_attn_idxs for index in depth]

    @property
    def inner(self) -> int:
        """Width of the MLP.

        Source: transformers, ``Lfm2MLP``.
        """
        inner = self.block_ff_dim or self.intermediate_size
        if not self.block_auto_adjust_ff_dim:
            return inner
        narrowed = int(self.block_ffn_dim_multiplier * int(2 * inner / 3))
        return -(-narrowed // self.block_multiple_of) * self.block_multiple_of


@dataclass(frozen=True)
class Config:
    """The whole."""

    vision_config: Tower
    text_config: TextConfig
    image_token_id: Token = 396
    downsample_factor: Literal[2] = MERGE
    projector_hidden_size: Count = 2560
    projector_hidden_act: Literal["gelu"] = "gelu"
    projector_bias: Literal[True] = True
    projector_use_layernorm: bool = True
    tie_word_embeddings: Literal[True] = True


@dataclass(frozen=True)
class Processor:
    """``preprocessor_config.json``: what can be another there, and what cannot."""

    encoder_patch_size: Literal[16] = PATCH_PX
    downsample_factor: Literal[2] = MERGE
    do_image_splitting: bool = True
    min_tiles: Count = 2
    max_tiles: Count = 10
    use_thumbnail: bool = True
    max_pixels_tolerance: Positive = 2.0
    resample: Literal[2] = 2  # bilinear
    image_mean: tuple[Half, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[Half, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not self.min_tiles <= self.max_tiles <= 10:
            raise ValueError(f"max_tiles: {self.max_tiles} is not {self.min_tiles} to 10")

    @property
    def most_runs(self) -> int:
        """Tiles of one image at most, the thumbnail among them."""
        return self.max_tiles + self.use_thumbnail if self.do_image_splitting else 1
