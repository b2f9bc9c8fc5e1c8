"""Toy-VLM: a plain ViT and a two-layer projector before a Qwen2-shaped LLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Calibration,
    Component,
    Job,
    Layout,
    ModelCard,
    Port,
    Profile,
    Published,
    Shape,
    UnsupportedProfile,
    affine_tensors,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

PATCH_PX = 16

CONFIG: Mapping[str, Any] = {
    "architectures": ["ToyVLMForConditionalGeneration"],
    "model_type": "toyvlm",
    "vision_config": {"depth": 12, "hidden_size": 384, "num_heads": 6, "intermediate_size": 1536},
    "text_config": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
}
TINY: Mapping[str, Any] = {
    "vision_config": {"depth": 3, "hidden_size": 48, "num_heads": 4, "intermediate_size": 64},
    "text_config": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 128},
}


@hookimpl
def model_cards() -> list[ModelCard]:
    """Register the one model."""
    return [
        ModelCard(
            id="toy-vlm",
            repo="somebody/Toy-VLM",
            architectures=("ToyVLMForConditionalGeneration",),
            profiles={"image": Profile(96, 96, prefill_len=128, kv_cache_len=511)},
            licence="MIT",
            layout=Layout(
                tensors,
                {"vision.": ("vision.", "model.vision_tower."), "model.": ("model.",)},
            ),
            published=Published(CONFIG, tiny=TINY),
        )
    ]


@hookimpl
def export_vision(job: Job) -> list[Component]:
    """Describe the tower, the projector included, at the profile's image size."""
    from . import vision  # torch is only needed from here on

    height, width = job.profile.height, job.profile.width
    if height % PATCH_PX or width % PATCH_PX:
        raise UnsupportedProfile(
            f"an image of {height}x{width} px does not fit",
            hint=f"both sides must be multiples of {PATCH_PX} px",
        )
    rows = height * width // PATCH_PX**2

    def preprocess(images: Sequence[Image]) -> list[dict[str, np.ndarray[Any, Any]]]:
        return [{"pixel_values": np.asarray(images[0].resize((width, height)))}]

    return [
        Component(
            "vision",
            f"{job.card.stem}_vision",
            tuple(vision.stages(job.config["vision_config"], rows, job.text_width)),
            inputs=(Port("pixel_values", (1, 3, height, width)),),
            outputs=(Port("image_tokens", (1, rows, job.text_width)),),
            preprocess=preprocess,
            calibration=Calibration(
                "Image", mean=(127.5,) * 3, std=(127.5,) * 3, tensor_format="RGB", size=4
            ),
        )
    ]


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    tower, text = config["vision_config"], config["text_config"]
    width, inner, hidden = tower["hidden_size"], tower["intermediate_size"], text["hidden_size"]
    shapes: dict[str, Shape] = affine_tensors("vision.patch", width, 3, PATCH_PX, PATCH_PX)
    for index in range(tower["depth"]):
        block = f"vision.blocks.{index}."
        shapes |= {
            **affine_tensors(block + "norm1", width),
            **affine_tensors(block + "norm2", width),
            block + "attn.in_proj_weight": (3 * width, width),
            block + "attn.in_proj_bias": (3 * width,),
            **affine_tensors(block + "attn.out_proj", width, width),
            **affine_tensors(block + "fc1", inner, width),
            **affine_tensors(block + "fc2", width, inner),
        }
    shapes |= affine_tensors("projector.0", hidden, width)
    shapes |= affine_tensors("projector.2", hidden, hidden)
    shapes["model.embed_tokens.weight"] = (text["vocab_size"], hidden)
    for index in range(text["num_hidden_layers"]):
        shapes[f"model.layers.{index}.input_layernorm.weight"] = (hidden,)
    return {**shapes, "model.norm.weight": (hidden,)}
