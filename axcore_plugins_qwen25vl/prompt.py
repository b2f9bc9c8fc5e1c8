"""Chat messages to token ids, rotary positions and the tower's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Control,
    Grid,
    Job,
    Prompt,
    Sample,
    chatml,
    encode_grids,
    load_tokenizer,
    message_parts,
    read_image,
    read_video,
)

from .preprocess import GRID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

SYSTEM = Control(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
)  # if the messages have none
FPS = 2.0  # frames per second of a video without `fps`
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
STOP = ("<|im_end|>", "<|endoftext|>")


Shown = tuple[str, list["Image"], float]
"""Marker, frames, and positions in time from one step of two frames to the next."""


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
    size = job.profile.height, job.profile.width
    GRID.check(*size)
    tokenizer = load_tokenizer(job.checkpoint.folder, _markers(job.config))
    pieces, samples = list[Any](), list[Sample]()
    for piece in _parts(messages, job.config["vision_config"]["tokens_per_second"]):
        if isinstance(piece, tuple):
            marker, frames, interval = piece
            steps = [frames[at : at + GRID.frames] for at in range(0, len(frames), GRID.frames)]
            pieces.append(Grid(marker, len(steps), *GRID.cells(*size), interval))
            samples += [{"hidden_states": GRID.patches(step, *size)} for step in steps]
        else:
            pieces.append(piece)
    ids, positions, places = encode_grids(tokenizer, pieces)
    return Prompt(
        input_ids=ids,
        position_ids=positions,
        vision_rows={"vision": places},
        images={"vision": samples},
        stop_ids=tuple(i for text in STOP if (i := tokenizer.token_to_id(text)) is not None),
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
        return IMAGE, [read_image(part["image"])], 0.0
    frames, fps = read_video(part, FPS)
    # float32 as in transformers, because multiples of it are truncated.
    return VIDEO, frames, float(np.float32(speed) * np.float32(GRID.frames / fps))
