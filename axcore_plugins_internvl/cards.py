"""The cards of the InternVL models.

Two fields are as published although they look wrong: the type of the small tower is
``intern_vit_6b``, and ``eos_token_id`` of Qwen2 is not the token that ends a turn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import Layout, ModelCard, Profile, Published

from . import layouts
from .config import Config
from .tiling import TILES

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA = Path(__file__).parent / "data"  # the small files of each published repository
ARCHITECTURES = ("InternVLChatModel", "InternVLForConditionalGeneration")
PREFILL_LEN = 128
HISTORIES = tuple(range(PREFILL_LEN, 1025, PREFILL_LEN))
TINY_BOS = 480  # id of the first special token of a small checkpoint

# The default of `conversation.py` in the remote layout, template internvl2_5. The template of
# the native layout has no default.
SYSTEM = (
    "你是书生·万象，英文名是InternVL，"  # noqa: RUF001
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

# Ids relative to `bos_token_id`; that of `</img>` in Qwen3 is inferred.
_TURNS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
_BRACKETS = {
    "qwen2": {"<img>": 22, "</img>": 23, "<IMG_CONTEXT>": 24},
    "qwen3": {"<img>": 26, "</img>": 27, "<IMG_CONTEXT>": 28},
}

# Cache lengths of the published builds, which their clients expect.
_KV_CACHE_LEN = {"qwen2": 2559, "qwen3": 2047}

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
    published = Published.read(DATA / name, tokens=tokens)
    language = published.config["llm_config"]
    return ModelCard(
        id=name,
        repo=f"OpenGVLab/{repo}",
        architectures=ARCHITECTURES,
        profiles={"image": _profile(_KV_CACHE_LEN[language["model_type"]])},
        licence=licence,
        parameters=parameters,
        choices={"tiles": TILES},
        layout=Layout(layouts.tensors, _PREFIXES, (layouts.TEXT,), config=Config),
        published=replace(published, tiny=_tiny(language, tiny)),
        runtimes={
            "axllm": {
                "tokenizer_type": "InternVL3",  # of either language model; every axllm has it
                "vlm_type": "InternVL3",
                "system_prompt": SYSTEM,  # axllm has none of its own
            }
        },
    )


def _profile(kv_cache_len: int) -> Profile:
    return Profile(
        height=448,
        width=448,
        prefill_len=PREFILL_LEN,
        kv_cache_len=kv_cache_len,
        last_kv_cache_len=HISTORIES,
        about="256 tokens a tile; prompts of up to 1152 tokens in chunks of 128",
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`."""
    text = layouts.text_config(config)
    offsets = {**_TURNS, **_BRACKETS[text["model_type"]]}
    return {token: text["bos_token_id"] + offset for token, offset in offsets.items()}


def _tiny(language: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return overrides for a small checkpoint, recognised by its language model's width."""
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
