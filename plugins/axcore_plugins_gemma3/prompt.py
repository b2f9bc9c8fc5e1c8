"""Chat messages to token ids, images, and the blocks whose tokens see each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Control,
    Prompt,
    Rows,
    UsageError,
    message_parts,
    read_image,
    tiled_prompt,
    trimmed,
)

from . import preprocess
from .cards import tokens as special_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from axcore import Job, Sample

    Piece = str | Control | Rows

IMAGE, BEGIN, FINISH = "<image_soft_token>", "<start_of_image>", "<end_of_image>"
TURN, END = "<start_of_turn>", "<end_of_turn>"


def prepare(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return the prompt that asks for the model's next message.

    The tokens of an image see each other, in both directions; its markers do not.

    Args:
        job: Its profile has the size of an image.
        messages: ``{"role": ..., "content": text or parts}``; a part is ``{"type": "text",
            "text": ...}`` or ``{"type": "image", "image": image or file}``.

    Raises:
        CheckpointError: The tokenizer or the image processor do not fit the model.
        ImageError: An image cannot be read.
        UsageError: A role or part is of another kind, or a role is not whose turn it is.
    """
    model = preprocess.model_of(job)
    rows, samples = Rows(IMAGE, model.mm_tokens_per_image), list[Any]()
    pieces = list(_conversation(messages, rows, samples, model.vision_config.image_size))
    known = special_tokens(job.config)
    markers = {name: known[name] if name in (BEGIN, FINISH, IMAGE) else None for name in known}
    prompt = tiled_prompt(job.checkpoint.folder, markers, pieces, samples, (END,))
    blocks = np.zeros(len(prompt.input_ids), np.int64)
    numbers = np.arange(1, len(samples) + 1).repeat(rows.count)
    blocks[prompt.places["vision"]] = numbers
    return replace(prompt, blocks=blocks)


def _conversation(
    messages: Sequence[Mapping[str, Any]], rows: Rows, samples: list[Sample], side: int
) -> Iterator[Piece]:
    """Yield text, what is written around it, and places; `samples` gets those of the images."""
    before, turns = _instructions(messages)
    yield Control("<bos>")
    for index, message in enumerate(turns):
        parts = message_parts(message, ("text", "image"))
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise UsageError(
                f"message {len(messages) - len(turns) + index + 1} is one of the"
                f" {message['role']}, at the {expected}'s turn",
                hint="user and assistant take turns; a system message comes first, or not at all",
            )
        yield Control(f"{TURN}{'user' if expected == 'user' else 'model'}\n")
        if index == 0:
            yield from before
        for part in parts:
            if part["type"] == "text":
                yield from trimmed([part["text"]])
            else:
                samples.append(preprocess.sample(read_image(part["image"]), side))
                yield from (Control(f"\n\n{BEGIN}"), rows, Control(f"{FINISH}\n\n"))
        yield Control(f"{END}\n")
    yield Control(f"{TURN}model\n")


def _instructions(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[Piece], Sequence[Mapping[str, Any]]]:
    """Return what a system message puts before the first user's text, and the other messages."""
    if not messages or messages[0].get("role") != "system":
        return [], messages
    if len(messages) == 1:
        raise UsageError(
            "a conversation is a system message alone", hint="the model takes it with a question"
        )
    said = [part["text"] for part in message_parts(messages[0], ("text",))]
    return [*said, Control("\n\n")], messages[1:]
