"""The cards of the Qwen2.5-VL models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import Layout, Lengths, ModelCard, Profile, Published, affine_tensors, llama_tensors

from .config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Shape

DATA = Path(__file__).parent / "data"  # the small files of each published repository
VIDEO = "video"  # the task whose samples are two frames: one temporal step

_TINY: Mapping[str, Any] = {
    "bos_token_id": 499,
    "eos_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "vision_token_id": 504,
    "image_token_id": 505,
    "video_token_id": 506,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vision_config": {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [3],
    },
    "rope_scaling": {"mrope_section": [2, 3, 3]},
    "vocab_size": 512,
}

# axllm runs chunks whose length is a power of two, and needs a history to allocate a cache.
PREFILL_LEN, HISTORIES = 128, (128, 256, 384)

# Ends of the names in Axera's packages, by size and task; the published scripts open those of 3B.
_NAMES: Mapping[str, Mapping[str, str]] = {
    "3b": {"image": "_vision_nchw448", VIDEO: "_vision_nhwc"},
    "7b": {"image": "_vision", VIDEO: "_vision_video"},
}

_PROFILES: Mapping[str, Profile] = {
    "image": Profile(
        height=448,
        width=448,
        prefill_len=PREFILL_LEN,
        kv_cache_len=1023,
        last_kv_cache_len=HISTORIES,
        about="one image: 256 tokens, and as many for the question",
        published=Lengths(prefill_len=320, kv_cache_len=1023),
    ),
    VIDEO: Profile(
        height=308,
        width=308,
        prefill_len=PREFILL_LEN,
        kv_cache_len=1023,
        last_kv_cache_len=HISTORIES,
        images=4,
        about="four temporal steps of two frames each, one run of the graph per step: 484 tokens",
        published=Lengths(prefill_len=512, kv_cache_len=1023),
    ),
}

# For text, all three rows of positions are equal, so the rotation of a plain model is exact.
_TEXT_MODEL: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rope_scaling": None,
}

_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "visual.": ("visual.", "model.visual."),
    "model.": ("model.", "model.language_model."),
    "lm_head.": ("lm_head.",),
}


def cards() -> list[ModelCard]:
    """Return the cards of the published sizes."""
    return [
        _card("3b", "Qwen Research License (non-commercial)", 3_754_622_976),
        _card("7b", "Apache-2.0", 8_292_166_656),
    ]


def _card(size: str, licence: str, parameters: int) -> ModelCard:
    name = f"qwen2.5-vl-{size}"
    published = Published.read(DATA / name, tiny=_TINY, tokens=tokens)
    stem = f"Qwen2.5-VL-{size.upper()}-Instruct"
    return ModelCard(
        id=name,
        repo=f"Qwen/{stem}",
        architectures=("Qwen2_5_VLForConditionalGeneration",),
        profiles={
            task: replace(profile, names={"vision": stem + _NAMES[size][task]})
            for task, profile in _PROFILES.items()
        },
        aliases=(f"qwen25vl-{size}",),
        licence=licence,
        parameters=parameters,
        layout=Layout(tensors, _PREFIXES, text_model=_TEXT_MODEL, config=Config),
        published=published,
        runtimes={
            "axllm": {
                "tokenizer_type": "Qwen3VL",  # the tokenizer is known by the later model's name
                "vlm_type": "Qwen2_5VL",
                "system_prompt": "You are a helpful assistant.",
                "vision_fps": 2,
                "vision_tokens_per_second": published.config["vision_config"]["tokens_per_second"],
            }
        },
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`.

    The config does not name ``<|im_start|>``; its id is one less than that of ``<|im_end|>``.
    """
    return {
        "<|endoftext|>": config["bos_token_id"],
        "<|im_start|>": config["eos_token_id"] - 1,
        "<|im_end|>": config["eos_token_id"],
        "<|vision_start|>": config["vision_start_token_id"],
        "<|vision_end|>": config["vision_end_token_id"],
        "<|vision_pad|>": config["vision_token_id"],
        "<|image_pad|>": config["image_token_id"],
        "<|video_pad|>": config["video_token_id"],
    }


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the canonical key and shape of every tensor that `config` implies.

    Args:
        config: ``config.json``, with the text fields at the top level as published or under
            ``text_config`` as newer transformers write them.
    """
    text = config.get("text_config", config)
    language = {**text, "tie_word_embeddings": config["tie_word_embeddings"]}
    return {**_vision(config["vision_config"]), **llama_tensors(language, qkv_bias=True)}


def _vision(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    patch, frames = config["patch_size"], config["temporal_patch_size"]
    merged = hidden * config["spatial_merge_size"] ** 2
    shapes: dict[str, Shape] = {"visual.patch_embed.proj.weight": (hidden, 3, frames, patch, patch)}
    for index in range(config["depth"]):
        block = f"visual.blocks.{index}."
        shapes |= {
            block + "norm1.weight": (hidden,),
            block + "norm2.weight": (hidden,),
            **affine_tensors(block + "attn.qkv", 3 * hidden, hidden),
            **affine_tensors(block + "attn.proj", hidden, hidden),
            **affine_tensors(block + "mlp.gate_proj", inner, hidden),
            **affine_tensors(block + "mlp.up_proj", inner, hidden),
            **affine_tensors(block + "mlp.down_proj", hidden, inner),
        }
    return {
        **shapes,
        "visual.merger.ln_q.weight": (hidden,),
        **affine_tensors("visual.merger.mlp.0", merged, merged),
        **affine_tensors("visual.merger.mlp.2", config["out_hidden_size"], merged),
    }
