"""Toy-VLM: a plain ViT and a two-layer projector before a Qwen2-shaped LLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Calibration,
    Component,
    Job,
    Layout,
    LlmBuildArgs,
    LlmCheckpoint,
    ModelCard,
    Port,
    Profile,
    Prompt,
    Published,
    Shape,
    UnsupportedProfile,
    affine_tensors,
    hookimpl,
    llama_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

PATCH_PX = 16

CONFIG: Mapping[str, Any] = {
    "architectures": ["ToyVLMForConditionalGeneration"],
    "model_type": "toyvlm",
    "vision_config": {"depth": 12, "hidden_size": 384, "num_heads": 6, "intermediate_size": 1536},
    "image_token_id": 31999,
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "vocab_size": 32000,
    },
}
TINY: Mapping[str, Any] = {
    "vision_config": {"depth": 3, "hidden_size": 48, "num_heads": 4, "intermediate_size": 64},
    "image_token_id": 511,
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
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
            published=Published(CONFIG, tiny=TINY, tokens=tokens),
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
        return [pixels(images[0], job)]

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


def pixels(image: Image, job: Job) -> dict[str, np.ndarray[Any, Any]]:
    """Return the sample of an image."""
    size = job.profile.width, job.profile.height
    return {"pixel_values": np.asarray(image.resize(size))}


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
    return {**shapes, **llama_tensors(text, qkv_bias=True)}


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a fabricated tokenizer."""
    last = config["image_token_id"]
    return {"<image>": last, "<|turn|>": last - 1, "<|end|>": last - 2}


@hookimpl
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Give builders a checkpoint of the language model alone."""
    names = llama_tensors(job.text_config, qkv_bias=True)
    checkpoint = LlmCheckpoint(job.text_config, {name: (name, 1.0) for name in names})
    return LlmBuildArgs.of(job.profile, checkpoint=checkpoint)


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Write the conversation, an image as one marker for each row."""
    from . import prompt

    return prompt.prepare(job, messages)
