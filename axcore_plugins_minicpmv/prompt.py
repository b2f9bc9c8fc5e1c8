"""Chat messages to token ids and pieces of images.

All models write an image as a thumbnail between brackets, followed by cells row by row. The
brackets and the text around messages differ; each model's module defines its own.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from axcore import Control, Prompt, Rows, encode_prompt, load_tokenizer, message_parts, read_image

from . import preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from axcore import Job, Sample

    from .slicing import Slicing

    Part = str | Control | Image
    Piece = Control | Rows
    Write = Callable[[int, Slicing], Iterable[Piece]]
    Samples = Callable[[Sequence[Image]], Iterable[Sample]]


def assemble(
    job: Job,
    parts: Iterable[Part],
    write: Write,
    samples: Samples,
    *,
    components: tuple[str, str],
    markers: Mapping[str, int | None],
    stop: Sequence[str],
) -> Prompt:
    """Return the prompt made of `parts`.

    Args:
        job: Its option ``fit`` says how an image is brought to the static size.
        parts: Text, what is written around it, and images, in order.
        write: Returns the text and places of an image, given its number and how it is cut.
        samples: Turns images into the tower's inputs, as for calibration.
        components: Names of the component that takes images and of the one whose rows the prompt
            takes.
        markers: See `axcore.load_tokenizer`.
        stop: Tokens that end an answer.
    """
    tokenizer = load_tokenizer(job.checkpoint.folder, markers)
    pieces, images = list[Any](), list[Image]()
    for part in parts:
        if isinstance(part, (str, Control)):
            pieces.append(part)
        else:
            cut = preprocess.cut(*part.size, job.choice("fit"))
            pieces += write(len(images), cut)
            images.append(part)
    ids, rows = encode_prompt(tokenizer, pieces)
    first, last = components
    return Prompt(
        input_ids=ids,
        position_ids=np.arange(len(ids))[None],
        vision_rows={last: np.concatenate([np.empty(0, np.int64), *rows])},
        images={first: list(samples(images))},
        stop_ids=tuple(i for text in stop if (i := tokenizer.token_to_id(text)) is not None),
    )


def lines(message: Mapping[str, Any]) -> list[Part]:
    """Return the content of a message, images and text, with each part on a line of its own."""
    parts = list[Any]()
    for part in message_parts(message, ("text", "image")):
        parts += ["\n", part["text"] if part["type"] == "text" else read_image(part["image"])]
    content = list[Any]()
    for is_text, group in groupby(parts[1:], lambda part: isinstance(part, str)):
        joined = list(group)
        content += ["".join(joined)] if is_text else joined
    return content


def bracketed(tag: str, rows: Rows) -> list[Piece]:
    """Return places for the rows of a piece between ``<tag>`` and ``</tag>``."""
    return [Control(f"<{tag}>"), rows, Control(f"</{tag}>")]


def cells(cut: Slicing, tag: str, rows: Rows) -> Iterator[Piece]:
    """Yield the cells of an image, with a line for each row; nothing if it is not cut."""
    for row in range(cut.rows):
        if row:
            yield Control("\n")
        yield from bracketed(tag, rows) * cut.columns


def numbered(rows: Rows) -> Write:
    """Return how V-4 and V-4.6 write an image: its number, the thumbnail, and slices."""

    def write(number: int, cut: Slicing) -> Iterator[Piece]:
        yield Control(f"<image_id>{number}</image_id>")
        yield from bracketed("image", rows)
        yield from cells(cut, "slice", rows)

    return write


def nested(rows: Rows) -> Write:
    """Return how V-2 writes an image: the thumbnail, and cells like it between slice brackets."""

    def write(_: int, cut: Slicing) -> Iterator[Piece]:
        yield from bracketed("image", rows)
        if cut.rows:
            yield Control("<slice>")
            yield from cells(cut, "image", rows)
            yield Control("</slice>")

    return write
