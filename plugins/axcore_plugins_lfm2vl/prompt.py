"""Chat messages to token ids and tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import (
    Control,
    Prompt,
    Rows,
    Tiles,
    chatml,
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

IMAGE = "<image>"
STOP = ("<|im_end|>", "<|endoftext|>")


def prepare(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return the prompt that asks for the assistant's next message.

    Args:
        job: Its profile has the size of a tile, its option ``tiles`` how many there may be.
        messages: ``{"role": ..., "content": text or parts}``; a part is ``{"type": "text",
            "text": ...}`` or ``{"type": "image", "image": image or file}``.

    Raises:
        CheckpointError: The tokenizer or the image processor do not fit the model.
        ImageError: An image cannot be read.
        UsageError: A role or part is of another kind.
    """
    size, splitting = preprocess.tile_size(job), preprocess.splitting(job)
    places = Rows(IMAGE, preprocess.tokens(job))
    tiles: list[Image] = []

    def written(message: Mapping[str, Any]) -> Iterator[Piece]:
        for part in message_parts(message, ("text", "image")):
            if part["type"] == "text":
                yield part["text"]
            else:
                cut = preprocess.cut(read_image(part["image"]), size, splitting)
                tiles.extend(cut.images)
                yield from _image(cut, places)

    pieces = [Control("<|startoftext|>"), *chatml(messages, written)]
    markers = special_tokens(job.config)
    known = {**dict.fromkeys(markers), IMAGE: markers[IMAGE]}
    samples = list(preprocess.samples(tiles))
    return tiled_prompt(job.checkpoint.folder, known, pieces, samples, STOP)


def _image(cut: Tiles, places: Rows) -> Iterator[Piece]:
    """Yield an image between its markers, each tile after its own."""
    yield Control("<|image_start|>")
    if not cut.rows:
        yield places
    else:
        for row in range(1, cut.rows + 1):
            for column in range(1, cut.columns + 1):
                yield Control(f"<|img_row_{row}_col_{column}|>")
                yield places
        if len(cut.images) > cut.rows * cut.columns:
            yield Control("<|img_thumbnail|>")
            yield places
    yield Control("<|image_end|>")
