"""Messages to token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Control,
    Prompt,
    Rows,
    encode_prompt,
    load_tokenizer,
    message_parts,
    read_image,
)

from . import PATCH_PX, pixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from axcore import Job

MARKERS = ("<image>", "<|turn|>", "<|end|>")


def prepare(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return the prompt that asks for the next message."""
    tokenizer = load_tokenizer(job.checkpoint.folder, MARKERS)
    rows = job.profile.height * job.profile.width // PATCH_PX**2
    pieces: list[str | Control | Rows] = []
    images = []
    for message in messages:
        parts = message_parts(message, ("text", "image"))
        pieces.append(Control(f"<|turn|>{message['role']}\n"))
        for part in parts:
            if part["type"] == "image":
                images.append(pixels(read_image(part["image"]), job))
                pieces.append(Rows("<image>", rows))
            else:
                pieces.append(part["text"])
        pieces.append(Control("<|end|>\n"))
    ids, places = encode_prompt(tokenizer, [*pieces, Control("<|turn|>assistant\n")])
    return Prompt(
        input_ids=ids,
        position_ids=np.arange(len(ids))[None],
        vision_rows={"vision": np.concatenate([np.empty(0, np.int64), *places])},
        images={"vision": images},
    )
