"""What a ``config.json`` of either layout must be like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axcore import Count, Layers, Positive, Token


@dataclass(frozen=True)
class VisionConfig:
    """The tower; what its modules take for granted can have one value only."""

    hidden_size: Count
    intermediate_size: Count
    num_attention_heads: Count
    num_hidden_layers: Layers
    layer_norm_eps: Positive
    image_size: Count | tuple[Count, ...]
    patch_size: Literal[14] | tuple[Literal[14], ...]
    num_channels: Literal[3] = 3

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size: not a multiple of {self.num_attention_heads} heads")
        for name in ("image_size", "patch_size"):
            sides = getattr(self, name)
            if isinstance(sides, tuple) and (len(sides) != 2 or len(set(sides)) != 1):
                raise ValueError(f"{name}: {list(sides)[:5]} are not two equal sides")


@dataclass(frozen=True)
class TextConfig:
    """What is read of the language model's part besides what the core reads."""

    model_type: Literal["qwen2", "qwen3"]
    bos_token_id: Token | None = None


@dataclass(frozen=True)
class Config:
    """The whole; the remote layout has an ``llm_config``, the native one a ``text_config``."""

    vision_config: VisionConfig
    llm_config: TextConfig | None = None
    text_config: TextConfig | None = None
    image_token_id: Token | None = None
    projector_hidden_act: Literal["gelu"] = "gelu"
    vision_feature_select_strategy: Literal["default"] = "default"

    def __post_init__(self) -> None:
        if self.llm_config is None and self.text_config is None:
            raise ValueError("llm_config: missing")
