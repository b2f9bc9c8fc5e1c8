"""Chat messages to token ids, tiles and frames."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from axcore import (
    Control,
    Prompt,
    Rows,
    UsageError,
    message_parts,
    read_image,
    tiled_prompt,
)

from . import preprocess
from .cards import tokens as special_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

    from axcore import Job

    Piece = str | Control | Rows

IMAGE, FAKE, END = "<image>", "<fake_token_around_image>", "<end_of_utterance>"
MOST_FRAMES = 64  # `video_sampling.max_frames`
FPS = 1.0  # `video_sampling.fps`, of a video without its own

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty"


def prepare(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return the prompt that asks for the assistant's next message.

    Args:
        job: Its profile has the size of a tile, its option ``tiles`` their number.
        messages: ``{"role": ..., "content": text or parts}``; a part is ``{"type": "text",
            "text": ...}``, ``{"type": "image", "image": image or file}`` or ``{"type": "video",
            "video": [images or files], "fps": 1.0}``.

    Raises:
        CheckpointError: The tokenizer or the image processor do not fit the model.
        ImageError: An image cannot be read.
        UsageError: A role or part is of another kind, or a video has no frames or too many.
    """
    writer = Writer(job)
    pieces = list(writer.conversation(messages))
    markers = {**dict.fromkeys(special_tokens(job.config)), IMAGE: job.config["image_token_id"]}
    samples = list(preprocess.samples(writer.tiles))
    return tiled_prompt(job.checkpoint.folder, markers, pieces, samples, (END,))


class Writer:
    """Writes a conversation, and keeps the tiles of its images in order."""

    def __init__(self, job: Job) -> None:
        self.side, self.most = preprocess.tile_px(job), preprocess.most_tiles(job)
        self.rows = Rows(IMAGE, preprocess.tokens(job))
        self.tiles: list[Image] = []

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[Piece]:
        """Yield text, what is written around it, and places for the rows of tiles."""
        yield Control("<|im_start|>")
        for message in messages:
            parts = message_parts(message, ("text", "image", "video"))
            space = "" if parts and parts[0]["type"] == "image" else " "
            yield Control(f"{message['role'].capitalize()}:{space}")
            for part in parts:
                if part["type"] == "text":
                    yield part["text"]
                elif part["type"] == "image":
                    yield from self._image(read_image(part["image"]))
                else:
                    yield from self._video(part)
            yield Control(f"{END}\n")
        yield Control("Assistant:")

    def _image(self, image: Image) -> Iterator[Piece]:
        cut = preprocess.cut(image, self.side, self.most)
        for row in range(1, cut.rows + 1):
            for column in range(1, cut.columns + 1):
                yield Control(f"{FAKE}<row_{row}_col_{column}>")
                yield self.rows
            yield Control("\n")
        if cut.rows:
            yield Control("\n")
        self.tiles += cut.images
        yield from self._whole()

    def _whole(self) -> Iterator[Piece]:
        yield Control(f"{FAKE}<global-img>")
        yield self.rows
        yield Control(FAKE)

    def _video(self, part: Mapping[str, Any]) -> Iterator[Piece]:
        frames, fps = [read_image(frame) for frame in part["video"]], part.get("fps", FPS)
        if not 0 < len(frames) <= MOST_FRAMES or not fps > 0:
            raise UsageError(
                f"a message has a video of {len(frames)} frames, {fps} a second",
                hint=f"give 1 to {MOST_FRAMES} frames, such as one of every second",
            )
        duration = timedelta(seconds=int(len(frames) / fps))
        yield Control(
            f"You are provided the following series of {words(len(frames))} frames from a"
            f" {duration} [H:MM:SS] video.\n"
        )
        for index, frame in enumerate(frames):
            minutes, seconds = divmod(int(index / fps), 60)
            self.tiles += preprocess.cut(frame, self.side, 1).images
            yield Control(f"\nFrame from {minutes:02d}:{seconds:02d}:")
            yield from self._whole()
        yield Control("\n\n")


def words(number: int) -> str:
    """Spell a number up to `MOST_FRAMES` in English."""
    units, (tens, rest) = _UNITS.split(), divmod(number, 10)
    if number < len(units):
        return units[number]
    return _TENS.split()[tens - 2] + (f"-{units[rest]}" if rest else "")
