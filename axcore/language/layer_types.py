"""The layer types of a language model, from its config."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FULL = "full_attention"


def other_layers(config: Mapping[str, Any]) -> str:
    """Describe the layers that do not have a plain key/value cache.

    Args:
        config: The language model's config.

    Returns:
        E.g. "18 of 24 layers of the type linear_attention"; empty where there are none.
    """
    types = _layer_types(config)
    others = Counter(name for name in types if name != FULL)
    return ", ".join(
        f"{count} of {len(types)} layers of the type {name}" for name, count in others.items()
    )


def _layer_types(config: Mapping[str, Any]) -> Sequence[str]:
    """Read ``layer_types``, or derive it for configs that do not list every layer.

    Source: transformers, configurations of hybrid models (``full_attention_interval``).
    """
    if listed := config.get("layer_types"):
        return list(map(str, listed))
    every, depth = config.get("full_attention_interval") or 1, config.get("num_hidden_layers", 0)
    return [FULL if number % every == 0 else "linear_attention" for number in range(1, depth + 1)]
