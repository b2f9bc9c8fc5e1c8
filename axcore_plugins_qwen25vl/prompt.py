"""Chat messages to token ids, rotary positions and the tower's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Control,
    Job,
    Prompt,
    Rows,
    Sample,
    UsageError,
    encode_prompt,
    load_tokenizer,
    message_parts,
    read_image,
)

from .preprocess import CELL_PX, FRAMES, check_size, patches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

Ints = np.ndarray[Any, np.dtype[np.int64]]

SYSTEM = Control(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
)  # if the messages have none
FPS = 2.0  # frames per second of a video without `fps`
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
STOP = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class _Vision:
    """An image or video of a prompt: its frames, and the positions from one step to the next."""

    marker: str
    frames: Sequence[Image]
    interval: np.float32

    @property
    def steps(self) -> int:
        return -(-len(self.frames) // FRAMES)


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
    height, width = job.profile.height, job.profile.width
    check_size(height, width)
    tokenizer = load_tokenizer(job.checkpoint.folder, _markers(job.config))
    grid = height // CELL_PX, width // CELL_PX
    parts = list(_parts(messages, job.config["vision_config"]["tokens_per_second"]))
    visions = [part for part in parts if isinstance(part, _Vision)]
    ids, rows = encode_prompt(
        tokenizer,
        [Rows(p.marker, p.steps * prod(grid)) if isinstance(p, _Vision) else p for p in parts],
    )
    return Prompt(
        input_ids=ids,
        position_ids=_positions(len(ids), visions, rows, grid),
        vision_rows={"vision": np.concatenate([np.empty(0, np.int64), *rows])},
        images={"vision": [s for vision in visions for s in _samples(vision, height, width)]},
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


def _parts(
    messages: Sequence[Mapping[str, Any]], speed: float
) -> Iterator[str | Control | _Vision]:
    """Yield text, images and videos; `speed` is in positions per second."""
    if not messages or messages[0].get("role") != "system":
        yield SYSTEM
    for message in messages:
        parts = message_parts(message, ("text", "image", "video"))
        yield Control(f"<|im_start|>{message['role']}\n")
        for part in parts:
            if part["type"] == "text":
                yield part["text"]
            else:
                yield Control("<|vision_start|>")
                yield _vision(part, speed)
                yield Control("<|vision_end|>")
        yield Control("<|im_end|>\n")
    yield Control("<|im_start|>assistant\n")


def _vision(part: Mapping[str, Any], speed: float) -> _Vision:
    if part["type"] == "image":
        return _Vision(IMAGE, [read_image(part["image"])], np.float32(0))
    if not part["video"]:
        raise UsageError("a message has a video without frames", hint="give at least one frame")
    seconds = np.float32(FRAMES / part.get("fps", FPS))
    frames = [read_image(frame) for frame in part["video"]]
    return _Vision(VIDEO, frames, np.float32(speed) * seconds)


def _samples(vision: _Vision, height: int, width: int) -> Iterator[Sample]:
    for start in range(0, len(vision.frames), FRAMES):
        yield {"hidden_states": patches(vision.frames[start : start + FRAMES], height, width)}


def _positions(
    length: int, visions: Sequence[_Vision], rows: Sequence[Ints], grid: tuple[int, int]
) -> Ints:
    """Return int64 ``[3, length]``: text counts up in all three rows, vision along a grid."""
    places, start, position = list[Ints](), 0, 0
    for vision, run in zip(visions, rows, strict=True):
        text = int(run[0]) - start
        places += [_counted(text) + position, _grid_positions(vision, *grid) + position + text]
        position += text + max(grid)
        start = int(run[-1]) + 1
    return np.concatenate([*places, _counted(length - start) + position], axis=1)


def _counted(length: int) -> Ints:
    return np.tile(np.arange(length), (3, 1))


def _grid_positions(vision: _Vision, rows: int, columns: int) -> Ints:
    """Return int64 ``[3, steps * rows * columns]``: time, row and column of every token.

    Source: transformers, ``Qwen2_5_VLModel.get_vision_position_ids``; float32 as there, because
    the product is truncated.
    """
    steps = np.arange(vision.steps, dtype=np.float32)
    time = (steps * vision.interval).astype(np.int64)
    axes = np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack(axes).reshape(3, -1)
