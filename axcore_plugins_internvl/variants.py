"""Recognition of models by their configs, and cards of models that are refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from axcore import ModelCard

from .layouts import text_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Size = tuple[Any, ...]  # of the language model: type, width, layers

OWNER = "OpenGVLab"
FLASH, OTHER = "internvl3.5-flash", "internvl-other"
FLASH_ALIASES = tuple(
    form.format(size)
    for size in ("1b", "2b", "4b", "8b", "14b")
    for form in ("internvl3.5-{}-flash", "internvl3_5-{}-flash", f"{OWNER}/InternVL3_5-{{}}-Flash")
)
FLASH_ARCHITECTURES = (  # of its ports to the native layout
    "InternVLFlashForConditionalGeneration",
    "InternvlFlashForConditionalGeneration",
)

_UNSUPPORTED: Mapping[Size, str] = {
    ("qwen3", 2560, 36): "InternVL3_5-4B",
    ("qwen3", 4096, 36): "InternVL3_5-8B",
    ("qwen3", 5120, 40): "InternVL3_5-14B",
    ("qwen3", 5120, 64): "InternVL3_5-38B",
    ("qwen3_moe", 2048, 48): "InternVL3_5-30B-A3B",
    ("qwen2", 3584, 28): "InternVL3-8B",
    ("qwen2", 5120, 48): "InternVL3-14B",
    ("qwen2", 5120, 64): "InternVL3-38B",
    ("qwen2", 8192, 80): "InternVL3-78B",
}

# Values that this plugin implements; a config may omit any of them.
_TOP = {"downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "vision_feature_layer": -1}
_TOWER = {
    "attention_bias": True,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "qkv_bias": True,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
    "use_qk_norm": False,
}


def told_apart(supported: Sequence[ModelCard]) -> list[ModelCard]:
    """Return the cards with functions that recognise their configs, and cards of refused models."""
    sizes = {
        _size(config): card.id
        for card in supported
        for config in (card.published.config, card.published.tiny_config)
    }
    refused = {
        **{_id(name): name for name in _UNSUPPORTED.values()},
        FLASH: "InternVL3_5-*-Flash",
        OTHER: "InternVL",
    }
    remedy = f"this plugin converts {', '.join(card.repo for card in supported)}"
    unsupported = [
        ModelCard(
            id=name,
            repo=f"{OWNER}/{repo}",
            architectures=(*supported[0].architectures, *FLASH_ARCHITECTURES),
            profiles=supported[0].profiles,
            aliases=FLASH_ALIASES if name == FLASH else (),
            unsupported=remedy,
        )
        for name, repo in refused.items()
    ]
    return [
        replace(card, recognises=partial(_is, card.id, sizes))
        for card in (*supported, *unsupported)
    ]


def _is(name: str, sizes: Mapping[Size, str], config: Mapping[str, Any]) -> bool:
    """Return whether `config` describes the model `name`; `sizes` has the supported models."""
    if _is_flash(config):
        return name == FLASH
    size = _size(config)
    if size in _UNSUPPORTED:
        return name == _id(_UNSUPPORTED[size])
    return name == (sizes.get(size, OTHER) if _is_computed(config) else OTHER)


def _is_flash(config: Mapping[str, Any]) -> bool:
    """Return whether the model has a router that chooses the resolution of each tile."""
    named = any(name in FLASH_ARCHITECTURES for name in config["architectures"])
    return named or any(field.startswith("flash_") for field in config)


def _is_computed(config: Mapping[str, Any]) -> bool:
    """Return whether the vision side is the one that this plugin implements."""
    vision = config.get("vision_config")
    return isinstance(vision, dict) and all(
        part.get(name, value) == value
        for part, expected in ((config, _TOP), (vision, _TOWER))
        for name, value in expected.items()
    )


def _size(config: Mapping[str, Any]) -> Size:
    text = text_config(config)
    values = (text.get(name) for name in ("model_type", "hidden_size", "num_hidden_layers"))
    # Anything else cannot be looked up, and is of no model.
    return tuple(value if isinstance(value, (str, int)) else None for value in values)


def _id(repo: str) -> str:
    return repo.lower().replace("3_5", "3.5")
