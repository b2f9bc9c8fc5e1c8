"""The cards of the Qwen3.5 models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import (
    Choice,
    Layout,
    ModelCard,
    PatchGrid,
    Profile,
    Published,
    delta_tensors,
    rotary_tower_tensors,
)

from .config import Config
from .preprocess import IMAGE_GRID, VIDEO_GRID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Job, Shape

DATA = Path(__file__).parent / "data"  # the small files of each published repository

_TINY: Mapping[str, Any] = {
    "vision_start_token_id": 479,
    "vision_end_token_id": 480,
    "image_token_id": 482,
    "video_token_id": 483,
    "text_config": {
        "eos_token_id": 470,
        "head_dim": 32,
        "hidden_size": 64,
        "intermediate_size": 128,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_key_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [2, 1, 1]},
        "vocab_size": 512,
    },
    "vision_config": {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "num_position_embeddings": 81,
        "out_hidden_size": 64,
    },
}

PREFILL_LEN = 128
HISTORIES = tuple(range(PREFILL_LEN, 1153, PREFILL_LEN))

_PROFILES: Mapping[str, Profile] = {
    "image": Profile(
        height=384,
        width=384,
        prefill_len=PREFILL_LEN,
        kv_cache_len=2047,
        last_kv_cache_len=HISTORIES,
        about="images of 144 tokens each; prompts of up to 1280 tokens in chunks of 128",
    ),
    "video": Profile(
        height=384,
        width=384,
        prefill_len=PREFILL_LEN,
        kv_cache_len=2047,
        last_kv_cache_len=HISTORIES,
        images=4,
        about="eight frames: four steps of two, one run of the graph per step, 144 tokens each",
    ),
}

THINKING = Choice(
    ("off", "on"),
    "whether the model thinks before it answers. off: its thoughts are written for it, and empty;"
    " on: it writes them, up to </think>, in front of the answer",
)

_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "visual.": ("model.visual.", "visual."),
    "model.": ("model.language_model.", "model."),
    "lm_head.": ("lm_head.",),
    "mtp.": ("mtp.",),
}


def cards() -> list[ModelCard]:
    """Return the cards of the published sizes."""
    return [_card("0.8B", 852_985_920), _card("2B", 2_213_241_664), _card("4B", 4_539_265_536)]


def grid_of(job: Job) -> PatchGrid:
    """Return how images of the job's task are cut."""
    return VIDEO_GRID if job.task == "video" else IMAGE_GRID


def _card(size: str, parameters: int) -> ModelCard:
    name = f"qwen3.5-{size.lower()}"
    return ModelCard(
        id=name,
        repo=f"Qwen/Qwen3.5-{size}",
        architectures=("Qwen3_5ForConditionalGeneration",),
        profiles=_PROFILES,
        aliases=(f"qwen35-{size.lower()}",),
        licence="Apache-2.0",
        parameters=parameters,
        choices={"thinking": THINKING},
        layout=Layout(
            tensors,
            _PREFIXES,
            text_prefixes=("model.", "lm_head.", "mtp."),
            spare=("mtp.",),  # multi-token prediction is not used
            text_model={"architectures": ["Qwen3_5ForCausalLM"]},
            config=Config,
        ),
        published=Published.read(DATA / name, tiny=_TINY, tokens=tokens),
    )


# Ids relative to that of ``<|endoftext|>``, which alone the config names.
_OFFSETS: Mapping[str, int] = {
    "<|endoftext|>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": 2,
    "<think>": 24,
    "</think>": 25,
}


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`."""
    first = config["text_config"]["eos_token_id"]
    return {
        **{token: first + offset for token, offset in _OFFSETS.items()},
        "<|vision_start|>": config["vision_start_token_id"],
        "<|vision_end|>": config["vision_end_token_id"],
        "<|vision_pad|>": config["vision_end_token_id"] + 1,
        "<|image_pad|>": config["image_token_id"],
        "<|video_pad|>": config["video_token_id"],
    }


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the canonical key and shape of every tensor that `config` implies."""
    text = config["text_config"]
    shapes = rotary_tower_tensors(config["vision_config"], "visual.")
    shapes |= delta_tensors(text, "model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes
