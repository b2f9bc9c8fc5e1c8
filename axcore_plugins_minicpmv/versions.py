"""Values that several models share, and cards of models that are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import ModelCard, Profile

if TYPE_CHECKING:
    from collections.abc import Mapping

_REMEDY = "this plugin converts MiniCPM-V-2, MiniCPM-V-4 and MiniCPM-V-4.6"

DATA = Path(__file__).parent / "data"
"""The small files of each published repository."""
LICENCE = "MiniCPM Model License or Apache-2.0 (the published pages disagree)"
_VISION_FIELDS = (
    "batch_vision_input",
    "drop_vision_last_layer",
    "image_size",
    "max_slice_nums",
    "mm_use_im_start_end",
    "patch_size",
    "query_num",
    "scale_resolution",
    "slice_mode",
    "use_image_id",
    "version",
    "vision_batch_size",
    "vision_encoder",
)
TEXT_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **dict.fromkeys(_VISION_FIELDS),
}
PROFILES = {
    "image": Profile(
        height=448,
        width=448,
        prefill_len=320,
        kv_cache_len=1023,
        about="64 tokens an image, and 256 for the rest of the prompt",
    )
}


def version(config: Mapping[str, Any]) -> float | None:
    """Return the version in a config, a number or a numeric string; None if there is none."""
    try:
        return float(config["version"])
    except (KeyError, TypeError, ValueError, OverflowError):
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
        profiles=PROFILES,
        recognises=partial(_is_version, number),
        unsupported=_REMEDY,
    )


def _is_version(number: float, config: Mapping[str, Any]) -> bool:
    return version(config) == number
