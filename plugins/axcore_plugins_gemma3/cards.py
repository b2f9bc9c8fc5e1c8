"""The card of Gemma 3 4B."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import Layout, ModelCard, Profile, Published, llama_tensors, parse, vit_tensors

from .config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Shape

DATA = Path(__file__).parent / "data"  # the small files of the published repository
PREFILL_LEN, KV_CACHE_LEN = 320, 2559  # a chunk holds the 256 tokens of an image
TOWER, PROJECTOR, TEXT = "vision_tower.", "multi_modal_projector.", "language_model."
NORM, PROJECTION = (
    PROJECTOR + "mm_soft_emb_norm.weight",
    PROJECTOR + "mm_input_projection_weight",
)

_PREFIXES: Mapping[str, tuple[str, ...]] = {  # as published, and as transformers names them now
    TEXT + "model.": (TEXT + "model.", "model.language_model."),
    TEXT + "lm_head.": (TEXT + "lm_head.", "lm_head."),
    TOWER: ("vision_tower.vision_model.", "model.vision_tower.vision_model.", "model." + TOWER),
    PROJECTOR: (PROJECTOR, "model." + PROJECTOR),
}
_TINY: Mapping[str, Any] = {
    "boi_token_index": 498,
    "eoi_token_index": 499,
    "image_token_index": 500,
    "text_config": {
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 96,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 16,
        "sliding_window": 100,
        "vocab_size": 512,
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": 28,
    },
}


def cards() -> list[ModelCard]:
    """Return the card of the published size."""
    published = Published.read(DATA / "gemma-3-4b", tiny=_TINY, tokens=tokens)
    side = published.config["vision_config"]["image_size"]
    return [
        ModelCard(
            id="gemma-3-4b",
            repo="google/gemma-3-4b-it",
            architectures=("Gemma3ForConditionalGeneration",),
            profiles={
                "image": Profile(
                    height=side,
                    width=side,
                    prefill_len=PREFILL_LEN,
                    kv_cache_len=KV_CACHE_LEN,
                    last_kv_cache_len=tuple(range(PREFILL_LEN, 1921, PREFILL_LEN)),
                    about="256 tokens an image; prompts of up to 2240 tokens in chunks of 320",
                )
            },
            licence="Gemma",
            parameters=4_300_079_472,
            layout=Layout(
                tensors,
                _PREFIXES,
                (TEXT,),
                spare=(TEXT + "lm_head.",),  # some checkpoints store the tied head
                text_model={"architectures": ["Gemma3ForCausalLM"]},
                config=Config,
            ),
            published=published,
        )
    ]


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`."""
    model = parse(Config, config)
    return {
        "<pad>": 0,
        "<eos>": 1,
        "<bos>": 2,
        "<unk>": 3,
        "<start_of_turn>": 105,
        "<end_of_turn>": 106,
        "<start_of_image>": model.boi_token_index,
        "<end_of_image>": model.eoi_token_index,
        "<image_soft_token>": model.image_token_index,
    }


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the canonical key and shape of every tensor that `config` implies."""
    model = parse(Config, config)
    text, width = model.text_config, model.vision_config.hidden_size
    plain = llama_tensors({**asdict(text), "tie_word_embeddings": True}, TEXT, qk_norm=True)
    further = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    norms = {
        f"{TEXT}model.layers.{index}.{name}.weight": (text.hidden_size,)
        for index in range(text.num_hidden_layers)
        for name in further
    }
    return {
        **vit_tensors(TOWER, model.vision_config),
        NORM: (width,),
        PROJECTION: (width, text.hidden_size),
        **plain,
        **norms,
    }
