"""The cards of the LFM2-VL models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import (
    Choice,
    Layout,
    ModelCard,
    Profile,
    Published,
    affine_tensors,
    parse,
    vit_tensors,
)

from .config import MERGE, Config, TextConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from axcore import Shape

DATA = Path(__file__).parent / "data"  # the small files of each published repository
PREFILL_LEN = 256
SIDE = 512  # px, `tile_size`
GRID = 10  # rows and columns that have a marker
TOWER, PROJECTOR, TEXT = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.language_model.",
)

TILES = Choice(
    ("auto", *map(str, range(1, 11))),
    "into how many tiles a large image is cut at most. auto: as the checkpoint's image processor"
    " says, 10 as published: an image of more than twice a tile's area is cut into a grid of 2 to"
    " 10 tiles near its own proportions, and the whole image is a further tile, for 256 tokens a"
    " tile at 512x512 px. 1: the whole image alone. In either case the whole image is stretched"
    " to the tile, where the published processor picks a size of the image's own proportions",
)

_TINY: Mapping[str, Any] = {
    "image_token_id": 380,
    "projector_hidden_size": 96,
    "text_config": {
        "block_ff_dim": 96,
        "block_multiple_of": 16,
        "intermediate_size": 96,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_hidden_layers": 3,
        "vocab_size": 512,
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
    },
}


def cards() -> list[ModelCard]:
    """Return the cards of the published sizes."""
    return [_card("450m", 128, 450_822_656), _card("1.6b", 256, 1_584_804_000)]


def _card(size: str, tiny: int, parameters: int) -> ModelCard:
    """Describe a published model; `tiny` is the width of its small language model."""
    text = {**_TINY["text_config"], "hidden_size": tiny}
    overrides = {**_TINY, "text_config": text}
    return ModelCard(
        id=f"lfm2-vl-{size}",
        repo=f"LiquidAI/LFM2-VL-{size.upper()}",
        architectures=("Lfm2VlForConditionalGeneration",),
        profiles={
            "image": Profile(
                height=SIDE,
                width=SIDE,
                prefill_len=PREFILL_LEN,
                kv_cache_len=4095,
                last_kv_cache_len=tuple(range(PREFILL_LEN, 2817, PREFILL_LEN)),
                about="256 tokens a tile; prompts of up to 3072 tokens in chunks of 256",
            )
        },
        licence="LFM1.0",
        parameters=parameters,
        choices={"tiles": TILES},
        layout=Layout(
            tensors,
            {TOWER: ("model.vision_tower.vision_model.", TOWER)},
            (TEXT, "lm_head."),
            spare=("lm_head.",),
            config=Config,
        ),
        published=Published.read(DATA / f"lfm2-vl-{size}", tiny=overrides, tokens=tokens),
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`.

    The config names the id of ``<image>``; the markers of tiles follow it.
    """
    image = config["image_token_id"]
    places = [(row, column) for row in range(1, GRID + 1) for column in range(1, GRID + 1)]
    after = image + 1 + len(places)
    return {
        "<|pad|>": 0,
        "<|startoftext|>": config["text_config"]["bos_token_id"],
        "<|endoftext|>": 2,
        "<|im_start|>": 6,
        "<|im_end|>": config["text_config"]["eos_token_id"],
        "<image>": image,
        **{f"<|img_row_{r}_col_{c}|>": image + 1 + i for i, (r, c) in enumerate(places)},
        "<|img_thumbnail|>": after,
        "<|image_start|>": after + 1,
        "<|image_end|>": after + 2,
    }


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the canonical key and shape of every tensor that `config` implies."""
    model = parse(Config, config)
    joined, inner = model.vision_config.hidden_size * MERGE**2, model.projector_hidden_size
    norm = affine_tensors(PROJECTOR + "layer_norm", joined) if model.projector_use_layernorm else {}
    return {
        **vit_tensors(TOWER, model.vision_config, flat=True),
        **norm,
        **affine_tensors(PROJECTOR + "linear_1", inner, joined),
        **affine_tensors(PROJECTOR + "linear_2", model.text_config.hidden_size, inner),
        **dict(_language(model.text_config)),
    }


def _language(text: TextConfig) -> Iterator[tuple[str, Shape]]:
    hidden, head = text.hidden_size, text.hidden_size // text.num_attention_heads
    keys = head * text.num_key_value_heads
    yield TEXT + "embed_tokens.weight", (text.vocab_size, hidden)
    for index, attends in enumerate(text.attends):
        layer = f"{TEXT}layers.{index}."
        yield layer + "operator_norm.weight", (hidden,)
        yield layer + "ffn_norm.weight", (hidden,)
        if attends:
            yield layer + "self_attn.q_proj.weight", (hidden, hidden)
            yield layer + "self_attn.k_proj.weight", (keys, hidden)
            yield layer + "self_attn.v_proj.weight", (keys, hidden)
            yield layer + "self_attn.out_proj.weight", (hidden, hidden)
            yield layer + "self_attn.q_layernorm.weight", (head,)
            yield layer + "self_attn.k_layernorm.weight", (head,)
        else:
            yield layer + "conv.in_proj.weight", (3 * hidden, hidden)
            yield layer + "conv.conv.weight", (hidden, 1, text.conv_L_cache)
            yield layer + "conv.out_proj.weight", (hidden, hidden)
        yield layer + "feed_forward.w1.weight", (text.inner, hidden)
        yield layer + "feed_forward.w3.weight", (text.inner, hidden)
        yield layer + "feed_forward.w2.weight", (hidden, text.inner)
    yield TEXT + "embedding_norm.weight", (hidden,)
