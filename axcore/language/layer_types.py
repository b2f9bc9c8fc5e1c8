"""The layer types of a language model, from its config."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from .architectures import with_defaults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR, CONVOLUTION = "linear_attention", "conv"


def other_layers(config: Mapping[str, Any], context: int = 0) -> str:
    """Describe the layers that are not attention to all tokens, with a plain key/value cache.

    Args:
        config: The language model's config.
        context: Tokens that are in use at most; a window that holds them all changes nothing.

    Returns:
        E.g. "18 of 24 layers of the type linear_attention"; empty where there are none.
    """
    config = with_defaults(config)
    types = layer_types(config)
    wide = config.get("sliding_window", 0) >= context > 0
    others = Counter(name for name in types if name != FULL and not (wide and name == SLIDING))
    return ", ".join(
        f"{count} of {len(types)} layers of the type {name}" for name, count in others.items()
    )


def layer_types(config: Mapping[str, Any]) -> Sequence[str]:
    """Read ``layer_types``, or derive it for configs that do not list every layer.

    Args:
        config: The language model's config, see `with_defaults`.

    Source: transformers, configurations of hybrid models.
    """
    if listed := config.get("layer_types"):
        return list(map(str, listed))
    depth = config.get("num_hidden_layers", 0)
    if (attends := config.get("full_attn_idxs")) is not None:
        return [FULL if index in attends else CONVOLUTION for index in range(depth)]
    if every := config.get("full_attention_interval"):
        return _turns(LINEAR, every, depth)
    if not config.get("sliding_window") or not config.get("use_sliding_window", True):
        return [FULL] * depth
    if every := config.get("sliding_window_pattern"):
        return _turns(SLIDING, every, depth)
    if "no_rope_layer_interval" in config:
        return [FULL if rotates else SLIDING for rotates in rotated(config)]
    first = config.get("max_window_layers", 0)
    return [SLIDING if index >= first else FULL for index in range(depth)]


def rotated(config: Mapping[str, Any]) -> Sequence[bool]:
    """Return for each layer whether it has rotary positions."""
    if listed := config.get("no_rope_layers"):
        return list(map(bool, listed))
    every, depth = config.get("no_rope_layer_interval"), config["num_hidden_layers"]
    return [not every or bool(number % every) for number in range(1, depth + 1)]


def _turns(other: str, every: int, depth: int) -> list[str]:
    return [FULL if number % every == 0 else other for number in range(1, depth + 1)]
