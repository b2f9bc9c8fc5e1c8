"""What is known of each Qwen2.5-VL model before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import ModelCard, Profile, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VIDEO = "video"  # the task whose samples are two frames: one temporal step

_VISION: Mapping[str, Any] = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}

_CONFIG_3B: Mapping[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": _VISION,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}

_CONFIG_7B: Mapping[str, Any] = {
    **_CONFIG_3B,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vision_config": {**_VISION, "out_hidden_size": 3584},
    "vocab_size": 152064,
}

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

_PROFILES: Mapping[str, Profile] = {
    "image": Profile(
        height=448,
        width=448,
        prefill_len=320,
        kv_cache_len=1023,
        about="one image: 256 tokens, and 64 for the question",
    ),
    VIDEO: Profile(
        height=308,
        width=308,
        prefill_len=512,
        kv_cache_len=1023,
        images=4,
        about="four temporal steps of two frames each, one run of the graph per step: 484 tokens",
    ),
}

# Positions of text are equal in all three of their rows, so plain rotation is exact.
_TEXT_MODEL: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rope_scaling": None,
}

# axllm has this tokenizer under the later model's name alone.
_AXLLM: Mapping[str, Any] = {
    "tokenizer_type": "Qwen3VL",
    "vlm_type": "Qwen2_5VL",
    "system_prompt": "You are a helpful assistant.",
    "vision_tokens_per_second": _VISION["tokens_per_second"],
}

_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "visual.": ("visual.", "model.visual."),
    "model.": ("model.", "model.language_model."),
    "lm_head.": ("lm_head.",),
}

_FILES: Mapping[str, Mapping[str, Any]] = {
    "generation_config.json": {
        "bos_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "pad_token_id": 151643,
        "repetition_penalty": 1.05,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.001,
        "transformers_version": "4.49.0",
    },
    "preprocessor_config.json": {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    },
}


def cards() -> list[ModelCard]:
    """Return the cards of the published sizes."""
    return [
        _card("3b", "Qwen Research License (non-commercial)", 3_754_622_976, _CONFIG_3B),
        _card("7b", "Apache-2.0", 8_292_166_656, _CONFIG_7B),
    ]


def _card(size: str, licence: str, parameters: int, config: Mapping[str, Any]) -> ModelCard:
    return ModelCard(
        id=f"qwen2.5-vl-{size}",
        repo=f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct",
        architectures=("Qwen2_5_VLForConditionalGeneration",),
        profiles=_PROFILES,
        aliases=(f"qwen25vl-{size}",),
        licence=licence,
        parameters=parameters,
        config=config,
        tiny=_TINY,
        prefixes=_PREFIXES,
        text_prefixes=("model.", "lm_head."),
        tensors=tensors,
        files=_FILES,
        text_model=_TEXT_MODEL,
        tokens=tokens,
        axllm=_AXLLM,
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens that a prompt needs, with the ids that `config` gives or implies.

    What begins a turn has the id before what ends it, in the published models and the small one.
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
    shapes = {**dict(_vision(config["vision_config"])), **dict(_language(text))}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes


def _vision(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    patch, frames = config["patch_size"], config["temporal_patch_size"]
    merged = hidden * config["spatial_merge_size"] ** 2
    yield "visual.patch_embed.proj.weight", (hidden, 3, frames, patch, patch)
    for index in range(config["depth"]):
        block = f"visual.blocks.{index}."
        yield block + "norm1.weight", (hidden,)
        yield block + "norm2.weight", (hidden,)
        yield from _linear(block + "attn.qkv", 3 * hidden, hidden)
        yield from _linear(block + "attn.proj", hidden, hidden)
        yield from _linear(block + "mlp.gate_proj", inner, hidden)
        yield from _linear(block + "mlp.up_proj", inner, hidden)
        yield from _linear(block + "mlp.down_proj", hidden, inner)
    yield "visual.merger.ln_q.weight", (hidden,)
    yield from _linear("visual.merger.mlp.0", merged, merged)
    yield from _linear("visual.merger.mlp.2", config["out_hidden_size"], merged)


def _language(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield from _linear(layer + "self_attn.q_proj", hidden, hidden)
        yield from _linear(layer + "self_attn.k_proj", key_width, hidden)
        yield from _linear(layer + "self_attn.v_proj", key_width, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, hidden)
        yield layer + "mlp.gate_proj.weight", (inner, hidden)
        yield layer + "mlp.up_proj.weight", (inner, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def _linear(key: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield key + ".weight", (rows, columns)
    yield key + ".bias", (rows,)
