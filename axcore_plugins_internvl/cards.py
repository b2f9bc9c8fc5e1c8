"""What is known of each InternVL model before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import ModelCard, Profile

from . import layouts
from .tiling import TILES

if TYPE_CHECKING:
    from collections.abc import Mapping

ARCHITECTURES = ("InternVLChatModel", "InternVLForConditionalGeneration")
PREFILL_LEN = 128
HISTORIES = tuple(range(PREFILL_LEN, 1025, PREFILL_LEN))
TINY_BOS = 480  # the special tokens of a small checkpoint follow

# How far behind `bos_token_id` the published tokens lie; `</img>` of Qwen3 is inferred.
_TURNS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
_BRACKETS = {
    "qwen2": {"<img>": 22, "</img>": 23, "<IMG_CONTEXT>": 24},
    "qwen3": {"<img>": 26, "</img>": 27, "<IMG_CONTEXT>": 28},
}

_VISION: Mapping[str, Any] = {
    "architectures": ["InternVisionModel"],
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "image_size": 448,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-06,
    "model_type": "intern_vit_6b",  # sic
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
    "use_flash_attn": True,
}

_QWEN3: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}

_QWEN2: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151643,  # sic; a chat stops on 151645
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151674,
}

_LANGUAGE: Mapping[str, Mapping[str, Any]] = {
    "internvl3.5-1b": {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072},
    "internvl3.5-2b": {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144},
    "internvl3-1b": {
        **_QWEN2,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        # Without effect up to 32768 tokens.
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
    },
    "internvl3-2b": {
        **_QWEN2,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
    },
}

# axllm's tokenizer of a language model; its images are treated alike.
_TOKENIZER_TYPES = {"qwen2": "InternVL3", "qwen3": "InternVL3_5"}

_PROCESSOR: Mapping[str, Any] = {
    "crop_size": 448,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 448,
}

_PROFILES: Mapping[str, Profile] = {
    "image": Profile(
        height=448,
        width=448,
        prefill_len=PREFILL_LEN,
        kv_cache_len=2047,
        last_kv_cache_len=HISTORIES,
        about="256 tokens a tile; prompts of up to 1152 tokens in chunks of 128",
    )
}

_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "vision_tower.": ("vision_tower.", "model.vision_tower."),
    "multi_modal_projector.": ("multi_modal_projector.", "model.multi_modal_projector."),
    "language_model.model.": ("language_model.model.", "model.language_model."),
    "language_model.lm_head.": ("language_model.lm_head.", "lm_head."),
}


def cards() -> list[ModelCard]:
    """Return the cards of the published models that are supported."""
    return [
        _card("internvl3.5-1b", "InternVL3_5-1B", 64, "Apache-2.0", 1_060_897_792),
        _card("internvl3.5-2b", "InternVL3_5-2B", 96, "Apache-2.0", 2_348_347_392),
        _card("internvl3-1b", "InternVL3-1B", 64, "MIT and Qwen terms", 938_193_024),
        _card("internvl3-2b", "InternVL3-2B", 96, "MIT and Qwen terms", 2_088_957_440),
    ]


def _card(name: str, repo: str, tiny: int, licence: str, parameters: int) -> ModelCard:
    """Describe a supported model; `tiny` is the width of its small language model."""
    return ModelCard(
        id=name,
        repo=f"OpenGVLab/{repo}",
        architectures=ARCHITECTURES,
        profiles=_PROFILES,
        licence=licence,
        parameters=parameters,
        config=_config(_LANGUAGE[name]),
        tiny=_tiny(_LANGUAGE[name], tiny),
        prefixes=_PREFIXES,
        text_prefixes=(layouts.TEXT,),
        tensors=layouts.tensors,
        choices={"tiles": TILES},
        files={"preprocessor_config.json": _PROCESSOR},
        tokens=tokens,
        axllm={
            "tokenizer_type": _TOKENIZER_TYPES[_LANGUAGE[name]["model_type"]],
            "vlm_type": "InternVL3",
        },
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens that a prompt needs, with their ids for `config`."""
    text = layouts.text_config(config)
    offsets = {**_TURNS, **_BRACKETS[text["model_type"]]}
    return {token: text["bos_token_id"] + offset for token, offset in offsets.items()}


def _config(language: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURES[0]],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "llm_config": language,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": _VISION,
    }


def _tiny(language: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Overrides for a small checkpoint; the language model's width tells them apart."""
    head_dim = {"head_dim": 32} if "head_dim" in language else {}  # not width / heads either
    return {
        "llm_config": {
            **head_dim,
            "bos_token_id": TINY_BOS,
            "eos_token_id": TINY_BOS + language["eos_token_id"] - language["bos_token_id"],
            "hidden_size": width,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        },
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
        },
    }
