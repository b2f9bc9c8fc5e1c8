"""The cards of the SmolVLM2 models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from axcore import (
    Choice,
    Layout,
    Lengths,
    ModelCard,
    Profile,
    Published,
    llama_tensors,
    parse,
    vit_tensors,
)

from .config import TEXT_ASSUMED, Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Shape

DATA = Path(__file__).parent / "data"  # the small files of each published repository
PREFILL_LEN, KV_CACHE_LEN = 128, 2559
GRID = 6  # rows and columns that have a marker
TOWER = "model.vision_model."
CONNECTOR = "model.connector.modality_projection.proj.weight"

TILES = Choice(
    ("auto", "4", "3", "2", "1"),
    "tiles along the longer side of an image. auto: what the checkpoint's image processor says, 4"
    " as published: every image is enlarged to 4 tiles and cut, and the whole image is a further"
    " tile: up to 17 runs of the graph and 1088 tokens at 512x512 px. 1: the whole image alone, one"
    " run and 64 tokens. Frames of a video are always whole",
)

_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "language_model.model.": ("model.text_model.",),
    "language_model.lm_head.": ("lm_head.",),
}
_TINY: Mapping[str, Any] = {
    "image_token_id": 500,
    "text_config": {
        "head_dim": 8,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
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
    return [
        _card("500m", "SmolVLM2-500M-Video-Instruct", 120, 507_482_304),
        _card("256m", "SmolVLM2-256M-Video-Instruct", 72, 256_484_928),
        _card("2.2b", "SmolVLM2-2.2B-Instruct", 64, 2_246_784_880),
    ]


def _card(size: str, repo: str, tiny: int, parameters: int) -> ModelCard:
    """Describe a published model; `tiny` is the width of its small language model."""
    name = f"smolvlm2-{size}"
    text = {**_TINY["text_config"], "hidden_size": tiny}
    overrides = {**_TINY, "text_config": text}
    published = Published.read(DATA / name, tiny=overrides, tokens=tokens)
    side = published.config["vision_config"]["image_size"]
    histories = range(PREFILL_LEN, 1409, PREFILL_LEN)
    return ModelCard(
        id=name,
        repo=f"HuggingFaceTB/{repo}",
        architectures=("SmolVLMForConditionalGeneration",),
        profiles={
            "image": Profile(
                height=side,
                width=side,
                prefill_len=PREFILL_LEN,
                kv_cache_len=KV_CACHE_LEN,
                last_kv_cache_len=tuple(histories),
                about="an image in 17 tiles; prompts of up to 1536 tokens in chunks of 128",
                published=Lengths(PREFILL_LEN, KV_CACHE_LEN, tuple(histories)[:8]),
            )
        },
        licence="Apache-2.0",
        parameters=parameters,
        choices={"tiles": TILES},
        layout=Layout(tensors, _PREFIXES, ("language_model.",), config=Config),
        published=published,
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`.

    The config names the id of ``<image>`` alone. The markers of tiles precede it, and the end of
    a turn is the last token.
    """
    image = config["image_token_id"]
    places = [(row, column) for row in range(1, GRID + 1) for column in range(1, GRID + 1)]
    first = image - 1 - len(places)
    return {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
        "<global-img>": first - 1,
        **{f"<row_{row}_col_{column}>": first + i for i, (row, column) in enumerate(places)},
        "<fake_token_around_image>": image - 1,
        "<image>": image,
        "<end_of_utterance>": config["text_config"]["vocab_size"] - 1,
    }


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the canonical key and shape of every tensor that `config` implies."""
    model = parse(Config, config)
    tied = {"tie_word_embeddings": model.tie_word_embeddings}
    text = {**TEXT_ASSUMED, **config["text_config"], **tied}
    joined = model.vision_config.hidden_size * model.scale_factor**2
    return {
        **vit_tensors(TOWER, model.vision_config),
        CONNECTOR: (text["hidden_size"], joined),
        **llama_tensors(text, "language_model."),
    }
