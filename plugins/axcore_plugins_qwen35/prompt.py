"""Chat messages to token ids, rotary positions and the tower's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import (
    Control,
    Job,
    Prompt,
    Shown,
    chatml,
    grid_prompt,
    message_parts,
    read_image,
    timed_steps,
    trimmed,
)

from .cards import grid_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FPS = 2.0  # frames per second of a video without `fps`
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
STOP = ("<|im_end|>", "<|endoftext|>")
THINK, THOUGHT = "<think>", "</think>"


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
    opened = f"{THINK}\n" if job.choice("thinking") == "on" else f"{THINK}\n\n{THOUGHT}\n\n"
    return grid_prompt(
        job,
        [*chatml(messages, _content, system_anywhere=False), Control(opened)],
        grid_of(job),
        markers={
            "<|im_start|>": None,
            "<|im_end|>": None,
            THINK: None,
            THOUGHT: None,
            "<|vision_start|>": job.config["vision_start_token_id"],
            "<|vision_end|>": job.config["vision_end_token_id"],
            IMAGE: job.config["image_token_id"],
            VIDEO: job.config["video_token_id"],
        },
        stop=STOP,
    )


def _content(message: Mapping[str, Any]) -> Iterator[str | Control | Shown]:
    """Yield the content of a message, trimmed; of an answer, what follows its thoughts."""
    pieces = trimmed(_pieces(message))
    spoken = [_text(piece) for piece in pieces] if message["role"] == "assistant" else []
    last = max((at for at, text in enumerate(spoken) if THOUGHT in text), default=-1)
    if last >= 0:
        rest = spoken[last].rpartition(THOUGHT)[2].lstrip("\n")
        yield Control(rest) if isinstance(pieces[last], Control) else rest
    yield from pieces[last + 1 :]


def _text(piece: str | Control | Shown) -> str:
    if isinstance(piece, Control):
        return piece.text
    return piece if isinstance(piece, str) else ""


def _pieces(message: Mapping[str, Any]) -> Iterator[str | Control | Shown]:
    """Yield what a message says and shows; images are the user's alone.

    A step of a video is written like an image, behind its time.
    """
    types = ("text", "image", "video") if message.get("role") == "user" else ("text",)
    for part in message_parts(message, types):
        if part["type"] == "text":
            yield part["text"]
        elif part["type"] == "image":
            yield from _framed(Shown(IMAGE, [read_image(part["image"])]))
        else:
            for seconds, frames in timed_steps(part, FPS, 2):
                yield Control(f"<{seconds:.1f} seconds>")
                yield from _framed(Shown(VIDEO, frames))


def _framed(shown: Shown) -> Iterator[Control | Shown]:
    yield Control("<|vision_start|>")
    yield shown
    yield Control("<|vision_end|>")
