"""MiniCPM-V-4.6: a SigLIP tower that merges 2 x 2 patches halfway, before a hybrid Qwen3.5.

The native layout of transformers; keys on disk carry the prefixes used here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from axcore import (
    Calibration,
    Choice,
    Component,
    Control,
    Layout,
    LlmBuildArgs,
    ModelCard,
    Port,
    Profile,
    Prompt,
    Published,
    Rows,
    affine_tensors,
    chatml,
    delta_tensors,
    parse,
    trimmed,
    vit_attention_tensors,
    vit_tensors,
)

from . import configs, preprocess, slicing, versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

    from axcore import Job, Sample, Shape

    Tensors = Iterator[tuple[str, Shape]]

PREFILL_LEN = 128
HISTORIES = tuple(range(PREFILL_LEN, 1153, PREFILL_LEN))

DOWNSAMPLE = Choice(
    ("16x", "4x"),
    "how many patches a token stands for. 16x: a merger inside the tower; 64 tokens at 448x448 px,"
    " sides are multiples of 56 px. 4x: without it; finer detail in 256 tokens, for about twice"
    " the computation, sides are multiples of 28 px",
)

_TINY: Mapping[str, Any] = {
    "image_token_id": 476,
    "insert_layer_id": 1,
    "text_config": {
        "bos_token_id": 465,
        "eos_token_id": 464,
        "head_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "linear_key_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_value_head_dim": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "vocab_size": 512,
    },
    "video_token_id": 477,
    "vision_config": {
        "hidden_size": 64,
        "insert_layer_id": 1,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
    },
}

_PROFILES: Mapping[str, Profile] = {
    "image": Profile(
        height=448,
        width=448,
        prefill_len=PREFILL_LEN,
        kv_cache_len=2047,
        last_kv_cache_len=HISTORIES,
        about="prompts of up to 1280 tokens in chunks of 128; one run of the graph per slice",
    ),
}

NO_THINKING = "<think>\n\n</think>\n\n"
PLACEHOLDER = "<|image_pad|>"
STOP = ("<|im_end|>", "<|endoftext|>")

# Ids relative to `bos_token_id`; those of the brackets are inferred from their order in
# MiniCPM-V-4.
_OFFSETS: Mapping[str, int] = {
    "<|im_start|>": 0,
    "<|im_end|>": 1,
    "<think>": 23,
    "</think>": 24,
    "<image>": 32,
    "</image>": 33,
    "<slice>": 42,
    "</slice>": 43,
    "<image_id>": 44,
    "</image_id>": 45,
}

CALIBRATION = Calibration(format="Numpy", src_dtype="FP32", size=64)


def card() -> ModelCard:
    """Return the card of the published model."""
    published = Published.read(versions.DATA / "minicpm-v-4.6", tiny=_TINY, tokens=tokens)
    return ModelCard(
        id="minicpm-v-4.6",
        repo="openbmb/MiniCPM-V-4.6",
        architectures=("MiniCPMV4_6ForConditionalGeneration",),
        profiles=_PROFILES,
        aliases=("minicpm-v-4_6", "minicpmv4_6"),
        licence="Apache-2.0",
        parameters=1_300_428_016,
        choices={"downsample": DOWNSAMPLE, "fit": preprocess.FIT},
        layout=Layout(
            tensors,
            text_prefixes=("model.language_model.", "lm_head.", "mtp."),
            # Only 16x uses the merger inside the tower; multi-token prediction is not used.
            spare=("model.vision_tower.vit_merger.", "mtp."),
            config=configs.V46,
        ),
        published=published,
        runtimes={
            "axllm": {
                "tokenizer_type": "MiniCPMV46VL",
                "vlm_type": "MiniCPMV46VL",
                "full_attention_interval": published.config["text_config"][
                    "full_attention_interval"
                ],
            }
        },
    )


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`."""
    text = config["text_config"]
    offsets = {token: text["bos_token_id"] + offset for token, offset in _OFFSETS.items()}
    pads = {PLACEHOLDER: config["image_token_id"], "<|video_pad|>": config["video_token_id"]}
    return {"<|endoftext|>": text["eos_token_id"], **offsets, **pads}


def export_vision(job: Job) -> list[Component]:
    """Describe the tower and its merger as one graph that takes a strip of patches.

    Raises:
        UnsupportedProfile: The image size does not fit; the hint suggests the nearest that does.
    """
    from . import v46_vision  # torch is only needed from here on

    height, width = job.profile.height, job.profile.width
    preprocess.check_size(height, width, _cell_px(job))
    patch, (rows, columns) = preprocess.PATCH_PX, preprocess.grid(job)
    early_merge = job.choice("downsample") == "16x"

    size = str(height) if height == width else f"{height}x{width}"
    return [
        Component(
            "vision",
            f"minicpmv4_6_vision_{size}",
            v46_vision.stages(job.config, rows, columns, early_merge=early_merge),
            inputs=(Port("pixel_values", (1, 3, patch, patch * rows * columns)),),
            outputs=(Port("image_features", (1, _tokens(job), job.text_width)),),
            preprocess=partial(_samples, job),
            calibration=CALIBRATION,
        )
    ]


def _samples(job: Job, images: Sequence[Image]) -> Iterator[Sample]:
    for pixels in preprocess.pieces(job, images, _cell_px(job)):
        yield {"pixel_values": preprocess.strip(pixels)}


def prepare_prompt(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Write the messages as ChatML without thinking, with a run of the graph for each piece.

    The published template trims every message.
    """
    from . import prompt

    preprocess.check_size(job.profile.height, job.profile.width, _cell_px(job))
    return prompt.assemble(
        job,
        [*chatml(messages, lambda message: trimmed(prompt.lines(message))), Control(NO_THINKING)],
        prompt.numbered(Rows(PLACEHOLDER, _tokens(job))),
        partial(_samples, job),
        components=("vision", "vision"),
        markers={**dict.fromkeys(_OFFSETS), PLACEHOLDER: job.config["image_token_id"]},
        stop=STOP,
    )


def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the profile's lengths, with the model type of the nested language model."""
    return LlmBuildArgs.of(
        job.profile,
        model_type=job.text_config["model_type"],
        notes=tuple(_slice_notes(job)),
    )


def _cell_px(job: Job) -> int:
    """Return the side in px of the square that becomes a token: four patches, or two."""
    return preprocess.PATCH_PX * (4 if job.choice("downsample") == "16x" else 2)


def _tokens(job: Job) -> int:
    return job.profile.height * job.profile.width // _cell_px(job) ** 2


def _slice_notes(job: Job) -> Iterator[str]:
    most = (slicing.MOST + 1) * _tokens(job)
    if job.choice("fit") == "slice" and most > job.profile.max_prompt:
        yield (
            f"a sliced image gives up to {most} rows, {_tokens(job)} a piece; a prompt holds"
            f" {job.profile.max_prompt} tokens: --last-kv-cache-len makes room for more"
        )


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the key and shape of every tensor that `config` implies."""
    text = config["text_config"]
    shapes = _vision(config["vision_config"], text["hidden_size"])
    shapes |= delta_tensors(text, "model.language_model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes


def _vision(config: Mapping[str, Any], width: int) -> dict[str, Shape]:
    tower, hidden = "model.vision_tower.", config["hidden_size"]
    merger = tower + "vit_merger."
    return {
        **vit_tensors(tower, parse(configs.V46Tower, config)),
        **vit_attention_tensors(merger, hidden),
        **_merge(merger, 4 * hidden, 4 * config["intermediate_size"], hidden),
        **_merge("model.merger.mlp.0.", 4 * hidden, 4 * hidden, width),
    }


def _merge(prefix: str, merged: int, inner: int, width: int) -> dict[str, Shape]:
    return {
        **affine_tensors(prefix + "pre_norm", merged),
        **affine_tensors(prefix + "linear_1", inner, merged),
        **affine_tensors(prefix + "linear_2", width, inner),
    }
