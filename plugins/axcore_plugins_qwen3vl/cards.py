"""The cards of the Qwen3-VL models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import (
    Layout,
    ModelCard,
    PatchGrid,
    Profile,
    Published,
    llama_tensors,
    merger_tensors,
    rotary_tower_tensors,
)

from .config import Config
from .preprocess import IMAGE_GRID, VIDEO_GRID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Job, Shape

DATA = Path(__file__).parent / "data"  # the small files of each published repository

_TINY: Mapping[str, Any] = {
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "image_token_id": 505,
    "video_token_id": 506,
    "text_config": {
        "bos_token_id": 499,
        "eos_token_id": 501,
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [4, 2, 2]},
        "vocab_size": 512,
    },
    "vision_config": {
        "depth": 3,
        "deepstack_visual_indexes": [0, 1],
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

# For text, all three rows of positions are equal, so the rotation of a plain model is exact.
_TEXT_MODEL: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "rope_scaling": None,
}

_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "visual.": ("model.visual.", "visual."),
    "model.": ("model.language_model.", "model."),
    "lm_head.": ("lm_head.",),
}


def cards() -> list[ModelCard]:
    """Return the cards of the published sizes."""
    return [_card("2b", 2_127_532_032), _card("4b", 4_437_815_808), _card("8b", 8_767_123_696)]


def grid_of(job: Job) -> PatchGrid:
    """Return how images of the job's task are cut."""
    return VIDEO_GRID if job.task == "video" else IMAGE_GRID


def _card(size: str, parameters: int) -> ModelCard:
    name = f"qwen3-vl-{size}"
    return ModelCard(
        id=name,
        repo=f"Qwen/Qwen3-VL-{size.upper()}-Instruct",
        architectures=("Qwen3VLForConditionalGeneration",),
        profiles=_PROFILES,
        aliases=(f"qwen3vl-{size}",),
        licence="Apache-2.0",
        parameters=parameters,
        layout=Layout(tensors, _PREFIXES, text_model=_TEXT_MODEL, config=Config),
        published=Published.read(DATA / name, tiny=_TINY, tokens=tokens),
        runtimes={
            "axllm": {
                "tokenizer_type": "Qwen3VL",
                "vlm_type": "Qwen3VL",
                "vision_fps": 2,
            }
        },
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`.

    The config does not name ``<|im_start|>`` and ``<|vision_pad|>``; they lie between others.
    """
    text = config["text_config"]
    return {
        "<|endoftext|>": text["bos_token_id"],
        "<|im_start|>": text["eos_token_id"] - 1,
        "<|im_end|>": text["eos_token_id"],
        "<|vision_start|>": config["vision_start_token_id"],
        "<|vision_end|>": config["vision_end_token_id"],
        "<|vision_pad|>": config["vision_end_token_id"] + 1,
        "<|image_pad|>": config["image_token_id"],
        "<|video_pad|>": config["video_token_id"],
    }


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the canonical key and shape of every tensor that `config` implies."""
    vision, text = config["vision_config"], config["text_config"]
    language = {**text, "tie_word_embeddings": config["tie_word_embeddings"]}
    shapes = rotary_tower_tensors(vision, "visual.")
    for index in range(len(vision["deepstack_visual_indexes"])):
        prefix = f"visual.deepstack_merger_list.{index}."
        shapes |= merger_tensors(vision, prefix, whole=True)
    return {**shapes, **llama_tensors(language, qk_norm=True)}
