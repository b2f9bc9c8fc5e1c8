"""What a ``config.json`` of the family must be like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axcore import Count, Layers, RotaryTowerConfig, Token


@dataclass(frozen=True)
class VisionConfig(RotaryTowerConfig):
    """The tower, and the blocks behind which features leave it for the first decoder layers."""

    patch_size: Literal[16]
    temporal_patch_size: Literal[2]
    spatial_merge_size: Literal[2]
    deepstack_visual_indexes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = self.deepstack_visual_indexes
        if list(taken) != sorted({*taken} & {*range(self.depth)}):
            raise ValueError(
                f"deepstack_visual_indexes: {list(taken)} do not ascend below depth {self.depth}"
            )


@dataclass(frozen=True)
class TextConfig:
    """What the tower has to fit."""

    hidden_size: Count
    num_hidden_layers: Layers


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
        vision, text = self.vision_config, self.text_config
        if vision.out_hidden_size != text.hidden_size:
            raise ValueError(
                f"vision_config.out_hidden_size: {vision.out_hidden_size} is not the language"
                f" model's hidden_size {text.hidden_size}"
            )
        if len(vision.deepstack_visual_indexes) > text.num_hidden_layers:
            raise ValueError(
                "vision_config.deepstack_visual_indexes: more than the"
                f" {text.num_hidden_layers} layers of the language model"
            )
