"""Models of one architecture told apart by their configs, and those known but not supported."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from axcore import ModelCard, Profile

if TYPE_CHECKING:
    from collections.abc import Mapping

_REMEDY = "this plugin converts MiniCPM-V-2, MiniCPM-V-4 and MiniCPM-V-4.6"
_PROFILES = {"image": Profile(height=448, width=448, prefill_len=320, kv_cache_len=1023)}


def version(config: Mapping[str, Any]) -> float | None:
    """Return the model's version, written as a number or as text; None where there is none."""
    try:
        return float(config["version"])
    except (KeyError, TypeError, ValueError):
        return None


def unsupported() -> list[ModelCard]:
    """Return cards of the models that share an architecture with those that are supported."""
    return [
        _card("minicpm-v-2.5", "openbmb/MiniCPM-Llama3-V-2_5", "MiniCPMV", 2.5),
        _card("minicpm-v-2.6", "openbmb/MiniCPM-V-2_6", "MiniCPMV", 2.6),
        _card("minicpm-v-4.5", "openbmb/MiniCPM-V-4_5", "MiniCPMV", 4.5),
        _card("minicpm-o-2.6", "openbmb/MiniCPM-o-2_6", "MiniCPMO", 2.6),
        _card("minicpm-o-4.5", "openbmb/MiniCPM-o-4_5", "MiniCPMO", 4.5),
    ]


def _card(name: str, repo: str, architecture: str, number: float) -> ModelCard:
    return ModelCard(
        id=name,
        repo=repo,
        architectures=(architecture,),
        profiles=_PROFILES,
        recognises=partial(_is_version, number),
        unsupported=_REMEDY,
    )


def _is_version(number: float, config: Mapping[str, Any]) -> bool:
    return version(config) == number
