"""Chat messages to token ids, rotary positions and the tower's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Control,
    Job,
    Prompt,
    Shown,
    chatml,
    grid_prompt,
    message_parts,
    read_image,
    read_video,
)

from .preprocess import GRID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SYSTEM = Control(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
)  # if the messages have none
FPS = 2.0  # frames per second of a video without `fps`
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
STOP = ("<|im_end|>", "<|endoftext|>")


def prepare(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return the prompt that asks for the assistant's next message.

    Args:
        job: Its profile has the size that every image and frame is resized to.
        messages: ``{"role": ..., "content": text or parts}``; a part is ``{"type": "text",
            "text": ...}``, ``{"type": "image", "image": image or file}`` or ``{"type": "video",
            "video": [images or files], "fps": 2.0}``.

    Raises:
        CheckpointError: The tokenizer is missing or does not fit the model.
        ImageError: An image cannot be read.
        UsageError: A role or part is of another kind, or a video has no frame.
    """
    return grid_prompt(
        job,
        _parts(messages, job.config["vision_config"]["tokens_per_second"]),
        GRID,
        markers=_markers(job.config),
        stop=STOP,
    )


def _markers(config: Mapping[str, Any]) -> dict[str, int | None]:
    return {
        "<|im_start|>": None,
        "<|im_end|>": None,
        "<|vision_start|>": config.get("vision_start_token_id"),
        "<|vision_end|>": config.get("vision_end_token_id"),
        IMAGE: config["image_token_id"],
        VIDEO: config["video_token_id"],
    }


def _parts(messages: Sequence[Mapping[str, Any]], speed: float) -> Iterator[str | Control | Shown]:
    """Yield text, images and videos; `speed` is in positions per second."""
    if not messages or messages[0].get("role") != "system":
        yield SYSTEM

    def content(message: Mapping[str, Any]) -> Iterator[str | Control | Shown]:
        for part in message_parts(message, ("text", "image", "video")):
            if part["type"] == "text":
                yield part["text"]
            else:
                yield Control("<|vision_start|>")
                yield _shown(part, speed)
                yield Control("<|vision_end|>")

    yield from chatml(messages, content)


def _shown(part: Mapping[str, Any], speed: float) -> Shown:
    if part["type"] == "image":
        return Shown(IMAGE, [read_image(part["image"])])
    frames, fps = read_video(part, FPS)
    # float32 as in transformers, because multiples of it are truncated.
    return Shown(VIDEO, frames, float(np.float32(speed) * np.float32(GRID.frames / fps)))
