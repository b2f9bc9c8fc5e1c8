"""Rotary positions from a config, in the older and the newer spelling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModel
from ..plain import shown
from .architectures import listed, unbuilt
from .layer_types import FULL, SLIDING

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAIN = ("default", "mrope")
_DEFAULT_THETA = 10000.0
_AXES = 3  # time, height, width


@dataclass(frozen=True)
class Rotary:
    """How the positions of a layer rotate its queries and keys.

    Attributes:
        frequencies: Radians per position for each pair of channels; pairs beyond are not rotated.
        factor: Of cosine and sine.
        sections: For each pair, which of the three rows of positions it uses; None if there is
            only one row.
    """

    frequencies: tuple[float, ...]
    factor: float
    sections: tuple[int, ...] | None


def rotary(
    config: Mapping[str, Any],
    head_dim: int,
    context: int,
    *,
    layer_type: str = "",
    interleaved: bool = False,
) -> Rotary:
    """Read the rotary positions of a layer.

    Args:
        config: The language model's config: ``rope_theta`` and ``rope_scaling``, or
            ``rope_parameters``, which may hold those of each type of layer.
        head_dim: Width of a head.
        context: Longest context that will be used. Scaling that depends on the length is fixed for
            this length, because a static graph cannot change it per prompt.
        layer_type: Of the layer.
        interleaved: Whether the axes of positions take turns among the pairs.

    Raises:
        UnsupportedModel: The scaling is not default, linear, longrope, or dynamic within the
            trained length; or the axes are arranged otherwise.

    Source: transformers, ``modeling_rope_utils``.
    """
    scaling = _scaling(config, layer_type)
    width = _width(config, scaling, head_dim)
    frequencies, factor = _frequencies(config, scaling, width, context)
    if scaling.get("mrope_interleaved", interleaved) != interleaved:
        raise unbuilt(f"`mrope_interleaved` {shown(scaling['mrope_interleaved'])}")
    return Rotary(frequencies, factor, _sections(scaling, width // 2, interleaved))


def _width(config: Mapping[str, Any], scaling: Mapping[str, Any], head_dim: int) -> int:
    """Return how many values of a head are rotated."""
    known = listed().find(config.get("model_type"))
    part = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    allowed = part == 1 or (known is not None and "partial_rotary_factor" in known.read)
    width = int(head_dim * part)
    if not allowed or width % 2 or not 0 < width <= head_dim:
        raise unbuilt(f"rotation of {shown(part)} of the {head_dim} values of a head")
    return width


def _frequencies(
    config: Mapping[str, Any], scaling: Mapping[str, Any], width: int, context: int
) -> tuple[tuple[float, ...], float]:
    """Return the angle per position for each pair, and the factor of cosine and sine."""
    kind = str(scaling.get("rope_type") or scaling.get("type") or PLAIN[0])
    theta = scaling.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA
    plain = [theta ** (-2 * i / width) for i in range(width // 2)]
    if kind in PLAIN:
        return tuple(plain), 1.0
    trained = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    # Dynamic scaling changes the frequencies only beyond the trained length.
    if kind == "dynamic" and context <= trained:
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
    raise unbuilt(
        f"rotary positions scaled by `{kind}` for {context} positions (trained with {trained})"
    )


def _sections(scaling: Mapping[str, Any], pairs: int, interleaved: bool) -> tuple[int, ...] | None:
    """Return which row of positions (time, height, width) each pair of channels uses.

    None if all use the same row.
    """
    counts: Sequence[int] | None = scaling.get("mrope_section")
    if counts is None:
        return None
    if sum(counts) != pairs or len(counts) != _AXES:
        raise UnsupportedModel(
            f"mrope_section {list(counts)} does not make up the {pairs} pairs of a head",
            hint="check whether config.json was edited",
        )
    if not interleaved:
        return tuple(row for row, count in enumerate(counts) for _ in range(count))
    turns = ((pair, pair % _AXES) for pair in range(pairs))
    return tuple(row if pair < _AXES * counts[row] else 0 for pair, row in turns)


def _scaling(config: Mapping[str, Any], layer_type: str) -> Mapping[str, Any]:
    """Return the settings of a layer type; those of one type may differ in their base alone."""
    parameters: Mapping[str, Any] = config.get("rope_parameters") or {}
    local = config.get("rope_local_base_freq")
    if local is None:
        return parameters or config.get("rope_scaling") or {}
    if odd := sorted(name for name, own in parameters.items() if not isinstance(own, Mapping)):
        raise unbuilt(f"`rope_parameters.{odd[0]}` for layers of every type")
    if layer_type == SLIDING:
        return {"rope_theta": local, **(parameters.get(SLIDING) or {})}
    return {**(parameters.get(FULL) or {}), **(config.get("rope_scaling") or {})}


def _attention_factor(config: Mapping[str, Any], scaling: Mapping[str, Any], trained: int) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = scaling.get("factor") or config["max_position_embeddings"] / trained
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
