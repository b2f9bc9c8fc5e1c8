"""Rotary positions from a config, in the older and the newer spelling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModel
from ..plain import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLAIN = ("default", "mrope")
_DEFAULT_THETA = 10000.0
_AXES = 3  # time, height, width


def inverse_frequencies(
    config: Mapping[str, Any], head_dim: int, context: int
) -> tuple[tuple[float, ...], float]:
    """Return the angle per position for each pair of channels, and the factor of cosine and sine.

    Args:
        config: The language model's config: ``rope_theta`` and ``rope_scaling``, or
            ``rope_parameters``.
        head_dim: Width of a head.
        context: Longest context that will be used. Scaling that depends on the length is fixed for
            this length, because a static graph cannot change it per prompt.

    Raises:
        UnsupportedModel: The scaling is not default, linear, longrope, or dynamic within the
            trained length.

    Source: transformers, ``modeling_rope_utils``.
    """
    scaling = _scaling(config)
    kind = _kind(scaling)
    part = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    if part != 1 or head_dim % 2:
        raise UnsupportedModel(
            f"the language model rotates {shown(part)} of the {head_dim} values of a head; layers"
            " of this kind are not built here",
            hint="build the language model with a toolchain that has its own builder",
        )
    theta = scaling.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    trained = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    # Dynamic scaling changes the frequencies only beyond the trained length.
    if kind in PLAIN or (kind == "dynamic" and context <= trained):
        return tuple(plain), 1.0
    if kind == "linear":
        return tuple(f / scaling["factor"] for f in plain), 1.0
    if kind == "longrope":
        stretch = scaling["long_factor" if context > trained else "short_factor"]
        if len(stretch) != len(plain):
            raise UnsupportedModel(
                f"rope_scaling has {len(stretch)} factors for the {len(plain)} pairs of a head",
                hint="check whether config.json was edited",
            )
        frequencies = (f / s for f, s in zip(plain, stretch, strict=True))
        return tuple(frequencies), _attention_factor(config, scaling, trained)
    raise UnsupportedModel(
        f"the language model scales rotary positions by `{kind}` for {context} positions"
        f" (trained with {trained}); layers of this kind are not built here",
        hint="build the language model with a toolchain that has its own builder",
    )


def sections(config: Mapping[str, Any], head_dim: int) -> tuple[int, ...] | None:
    """Return which row of positions (time, height, width) each pair of channels uses.

    None if all use the same row.
    """
    counts: Sequence[int] | None = _scaling(config).get("mrope_section")
    if counts is None:
        return None
    if sum(counts) != head_dim // 2 or len(counts) != _AXES:
        raise UnsupportedModel(
            f"mrope_section {list(counts)} does not make up the {head_dim // 2} pairs of a head",
            hint="check whether config.json was edited",
        )
    return tuple(row for row, count in enumerate(counts) for _ in range(count))


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or PLAIN[0])


def _attention_factor(config: Mapping[str, Any], scaling: Mapping[str, Any], trained: int) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = scaling.get("factor") or config["max_position_embeddings"] / trained
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
