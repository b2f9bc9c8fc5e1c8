"""What a ``config.json`` of the family must be like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axcore import Count, Layers, Positive, Token

from .preprocess import GRID


@dataclass(frozen=True)
class VisionConfig:
    """The tower; what its modules take for granted can have one value only."""

    depth: Layers
    hidden_size: Count
    intermediate_size: Count
    num_heads: Count
    out_hidden_size: Count
    fullatt_block_indexes: tuple[int, ...]
    window_size: Count
    tokens_per_second: Positive
    patch_size: Literal[14]
    temporal_patch_size: Literal[2]
    spatial_merge_size: Literal[2]
    hidden_act: Literal["silu"] = "silu"
    in_chans: Literal[3] = 3
    in_channels: Literal[3] = 3

    def __post_init__(self) -> None:
        # Rows and columns each turn a quarter of a head's values, and as many again.
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(f"hidden_size: no multiple of 4 in each of {self.num_heads} heads")
        if self.window_size % GRID.cell_px:
            raise ValueError(f"window_size: {self.window_size} is no multiple of {GRID.cell_px} px")


@dataclass(frozen=True)
class Config:
    """The whole, text fields aside."""

    vision_config: VisionConfig
    tie_word_embeddings: bool
    image_token_id: Token
    video_token_id: Token
    vision_start_token_id: Token | None = None
    vision_end_token_id: Token | None = None
