"""Chat messages to token ids, rotary positions and the tower's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from axcore import (
    Control,
    Grid,
    Job,
    Prompt,
    Sample,
    UsageError,
    chatml,
    encode_grids,
    load_tokenizer,
    message_parts,
    read_image,
    read_video,
)

from .cards import grid_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FPS = 2.0  # frames per second of a video without `fps`
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
STOP = ("<|im_end|>", "<|endoftext|>")

Shown = tuple[str, list[Image]]
"""Marker and frames of one run of the graph."""


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
        UsageError: A role or part is of another kind or in another place than the model was
            trained with, or a video has no frame.
    """
    grid, size = grid_of(job), (job.profile.height, job.profile.width)
    grid.check(*size)
    tokenizer = load_tokenizer(job.checkpoint.folder, _markers(job.config))
    pieces, samples = list[Any](), list[Sample]()
    for piece in chatml(list(_ordered(messages)), _content):
        if isinstance(piece, tuple):
            marker, frames = piece
            pieces.append(Grid(marker, 1, *grid.cells(*size)))
            samples.append({"hidden_states": grid.patches(frames, *size)})
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
        "<|vision_start|>": config["vision_start_token_id"],
        "<|vision_end|>": config["vision_end_token_id"],
        IMAGE: config["image_token_id"],
        VIDEO: config["video_token_id"],
    }


def _ordered(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the messages; refuse instructions in the middle, which the template would drop."""
    for index, message in enumerate(messages):
        if index and message.get("role") == "system":
            raise UsageError(
                f"message {index + 1} is a system message", hint="the model takes it first only"
            )
        yield message


def _content(message: Mapping[str, Any]) -> Iterator[str | Control | Shown]:
    """Yield what a message says and shows; images are the user's alone."""
    types = ("text", "image", "video") if message.get("role") == "user" else ("text",)
    for part in message_parts(message, types):
        if part["type"] == "text":
            yield part["text"]
        elif part["type"] == "image":
            yield from _framed(IMAGE, [read_image(part["image"])])
        else:
            yield from _video(part)


def _framed(marker: str, frames: list[Image]) -> Iterator[Control | Shown]:
    yield Control("<|vision_start|>")
    yield marker, frames
    yield Control("<|vision_end|>")


def _video(part: Mapping[str, Any]) -> Iterator[Control | Shown]:
    """Yield the steps of a video, two frames each, behind the time in the middle of each.

    Source: transformers, ``Qwen3VLProcessor._calculate_timestamps``.
    """
    frames, fps = read_video(part, FPS)
    for start in range(0, len(frames), 2):
        step = frames[start : start + 2]
        seconds = (start / fps + (start + len(step) - 1) / fps) / 2
        yield Control(f"<{seconds:.1f} seconds>")
        yield from _framed(VIDEO, step)
