"""Conversations in ChatML, the form that most of today's models were trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UsageError
from .prompt import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Piece = TypeVar("Piece")


def chatml(
    messages: Iterable[Mapping[str, Any]],
    write: Callable[[Mapping[str, Any]], Iterable[Piece]],
    *,
    system_anywhere: bool = True,
) -> Iterator[Piece | Control]:
    """Yield a conversation, ending where the assistant's answer begins.

    Args:
        messages: Chat messages.
        write: Returns the content of one; it has to check the role, as `message_parts` does.
        system_anywhere: Whether a system message may come later than first.

    Raises:
        UsageError: A system message comes later.
    """
    for number, message in enumerate(messages, 1):
        if number > 1 and not system_anywhere and message.get("role") == "system":
            raise UsageError(
                f"message {number} is a system message", hint="the model takes it first, or not"
            )
        content = list(write(message))
        yield Control(f"<|im_start|>{message['role']}\n")
        yield from content
        yield Control("<|im_end|>\n")
    yield Control("<|im_start|>assistant\n")


def trimmed(pieces: Iterable[Piece]) -> list[Piece]:
    """Return what a message says and shows, without white space at its beginning and end."""
    kept: list[Any] = list(pieces)
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while kept and isinstance(kept[end], (str, Control)):
            piece = kept.pop(end)
            control = isinstance(piece, Control)
            if text := strip(piece.text if control else piece):
                kept.insert(end % (len(kept) + 1), Control(text) if control else text)
                break
    return kept
