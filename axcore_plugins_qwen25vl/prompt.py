"""Chat messages to token ids, rotary positions and the samples the tower is run on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from axcore import CheckpointError, Job, PictureError, Prompt, Sample, UsageError

from .preprocess import CELL_PX, FRAMES, IMAGE_CALIBRATION, check_size, patches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

Ints = np.ndarray[Any, np.dtype[np.int64]]

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"  # where no other is given
FPS = 2.0  # frames per second of a video that does not say


@dataclass(frozen=True)
class _Vision:
    """A picture or video of a prompt: its frames, and the time between two steps in positions."""

    pad: int
    frames: Sequence[Image.Image]
    interval: np.float32

    @property
    def steps(self) -> int:
        return -(-len(self.frames) // FRAMES)


def prepare(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return the prompt that asks for the assistant's next message.

    Args:
        job: Its profile gives the size every picture and frame is resized to.
        messages: ``{"role": ..., "content": text or parts}``; a part is ``{"type": "text",
            "text": ...}``, ``{"type": "image", "image": picture or file}`` or ``{"type": "video",
            "video": [pictures or files], "fps": 2.0}``.

    Raises:
        CheckpointError: The checkpoint has no tokenizer.
        PictureError: A picture cannot be read.
        UsageError: A part is of another type, or a video has no frame.
    """
    height, width = job.profile.height, job.profile.width
    check_size(height, width)
    tokenizer = _tokenizer(job.checkpoint.folder)
    grid = height // CELL_PX, width // CELL_PX
    ids, places, rows = list[Ints](), list[Ints](), list[Ints]()
    samples = list[Sample]()
    length = position = 0
    for part in _joined(messages, job.config):
        if isinstance(part, str):
            tokens = np.array(tokenizer.encode(part, add_special_tokens=False).ids, np.int64)
            place = np.tile(np.arange(len(tokens)), (3, 1)) + position
            position += len(tokens)
        else:
            place = _grid_positions(part, *grid) + position
            tokens = np.full(place.shape[1], part.pad, np.int64)
            rows.append(np.arange(length, length + len(tokens)))
            samples.extend(_samples(part, height, width))
            position += max(grid)
        ids.append(tokens)
        places.append(place)
        length += len(tokens)
    return Prompt(
        input_ids=np.concatenate(ids),
        position_ids=np.concatenate(places, axis=1),
        vision_rows={"vision": np.concatenate([np.empty(0, np.int64), *rows])},
        pictures={"vision": samples},
    )


def _joined(
    messages: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> Iterator[str | _Vision]:
    """Yield pictures and the whole text between them: tokens may span two parts of a message."""
    for is_text, group in groupby(_parts(messages, config), lambda part: isinstance(part, str)):
        parts = list(group)
        yield from ["".join(map(str, parts))] if is_text else parts


def _parts(
    messages: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> Iterator[str | _Vision]:
    if not messages or messages[0]["role"] != "system":
        yield SYSTEM
    for message in messages:
        yield f"<|im_start|>{message['role']}\n"
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                yield part["text"]
            else:
                yield "<|vision_start|>"
                yield _vision(part, config)
                yield "<|vision_end|>"
        yield "<|im_end|>\n"
    yield "<|im_start|>assistant\n"


def _vision(part: Mapping[str, Any], config: Mapping[str, Any]) -> _Vision:
    if part["type"] == "image":
        return _Vision(config["image_token_id"], [_picture(part["image"])], np.float32(0))
    if part["type"] != "video":
        raise UsageError(
            f"a message has a part of type `{part['type']}`",
            hint="use parts of type text, image or video",
        )
    if not part["video"]:
        raise UsageError("a message has a video without frames", hint="give at least one frame")
    seconds = np.float32(FRAMES / part.get("fps", FPS))
    speed = config["vision_config"]["tokens_per_second"]
    frames = [_picture(frame) for frame in part["video"]]
    return _Vision(config["video_token_id"], frames, np.float32(speed) * seconds)


def _picture(source: Image.Image | str | Path) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    try:
        with Image.open(source) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise PictureError(
            f"cannot read the picture {source}\n  {error}", hint="give a JPEG, PNG or WebP file"
        ) from error


def _samples(vision: _Vision, height: int, width: int) -> Iterator[Sample]:
    for start in range(0, len(vision.frames), FRAMES):
        step = patches(vision.frames[start : start + FRAMES], height, width)
        yield {"hidden_states": IMAGE_CALIBRATION.graph_input(step)}


def _grid_positions(vision: _Vision, rows: int, columns: int) -> Ints:
    """Return int64 ``[3, steps * rows * columns]``: time, row and column of every token.

    Source: transformers, ``Qwen2_5_VLModel.get_vision_position_ids``; float32 as there, because
    the product is truncated.
    """
    steps = np.arange(vision.steps, dtype=np.float32)
    time = (steps * vision.interval).astype(np.int64)
    axes = np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack(axes).reshape(3, -1)


def _tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"the checkpoint has no tokenizer: {path} does not exist",
            hint="put the published tokenizer.json into the folder",
        )
    return Tokenizer.from_file(str(path))
