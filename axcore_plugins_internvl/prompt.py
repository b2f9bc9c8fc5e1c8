"""Chat messages to token ids and tiles."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import Control, Prompt, Rows, encode_prompt, load_tokenizer, message_parts, read_image

from . import layouts, preprocess
from .cards import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from axcore import Job

    from .preprocess import Pixels

CONTEXT = "<IMG_CONTEXT>"
STOP = ("<|im_end|>", "<|endoftext|>")


def prepare(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return the prompt that asks for the assistant's next message.

    An image is cut into at most as many tiles as the graph takes at once. Batches are filled with
    the tiles of all images in order.

    Args:
        job: Its profile has the size of a tile, its option ``tiles`` their number.
        messages: ``{"role": ..., "content": text or parts}``; a part is ``{"type": "text",
            "text": ...}`` or ``{"type": "image", "image": image or file}``.

    Raises:
        CheckpointError: The tokenizer is missing or does not fit the model.
        ImageError: An image cannot be read.
        UsageError: A role or part is of another kind.
    """
    height, width = job.profile.height, job.profile.width
    preprocess.check_size(height, width)
    tiles, tokens = int(job.choice("tiles")), height * width // preprocess.CELL_PX**2
    tokenizer = load_tokenizer(job.checkpoint.folder, _markers(job.config))
    full = tiles * tokens  # rows of a run; those of tiles that fill the last batch have no places
    parts = list(_parts(job, messages))
    ids, rows = encode_prompt(
        tokenizer,
        [Rows(CONTEXT, len(p) * tokens) if isinstance(p, list) else p for p in parts],
    )
    cut = [pixels for part in parts if isinstance(part, list) for pixels in part]
    places = np.concatenate([np.empty(0, np.int64), *rows])
    return Prompt(
        input_ids=ids,
        position_ids=np.arange(len(ids))[None],
        vision_rows={"vision": [places[i : i + full] for i in range(0, len(places), full)]},
        images={"vision": list(preprocess.batches(cut, tiles))},
        stop_ids=tuple(i for text in STOP if (i := tokenizer.token_to_id(text)) is not None),
    )


def _markers(config: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the markers; only the native layout has the id of one in its config."""
    plain = dict.fromkeys(("<|im_start|>", "<|im_end|>", "<img>", "</img>"))
    return {**plain, CONTEXT: config.get("image_token_id")}


def _parts(
    job: Job, messages: Sequence[Mapping[str, Any]]
) -> Iterator[str | Control | list[Pixels]]:
    """Yield text, and the tiles of each image.

    The images of a message with several are numbered, except in the native layout.
    """
    native, numbers = layouts.is_native(job.config), count(1)
    if not native and (not messages or messages[0].get("role") != "system"):
        yield Control(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
    for message in messages:
        parts = message_parts(message, ("text", "image"))
        several = sum(part["type"] == "image" for part in parts) > 1
        yield Control(f"<|im_start|>{message['role']}\n")
        for part in parts:
            if part["type"] == "text":
                yield part["text"]
            else:
                name = f"Image-{next(numbers)}: "
                yield from _image(job, part["image"], "" if native or not several else name)
        yield Control("<|im_end|>\n")
    yield Control("<|im_start|>assistant\n")


def _image(job: Job, source: Any, name: str) -> Iterator[Control | list[Pixels]]:
    height, width = job.profile.height, job.profile.width
    yield Control(f"{name}<img>")
    yield preprocess.pieces(read_image(source), int(job.choice("tiles")), height, width)
    yield Control("</img>\n")
