"""Conversations in ChatML, the form that most of today's models were trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from .prompt import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Piece = TypeVar("Piece")


def chatml(
    messages: Iterable[Mapping[str, Any]],
    write: Callable[[Mapping[str, Any]], Iterable[Piece]],
) -> Iterator[Piece | Control]:
    """Yield a conversation, ending where the assistant's answer begins.

    Args:
        messages: Chat messages.
        write: Returns the content of one; it has to check the role, as `message_parts` does.
    """
    for message in messages:
        content = list(write(message))
        yield Control(f"<|im_start|>{message['role']}\n")
        yield from content
        yield Control("<|im_end|>\n")
    yield Control("<|im_start|>assistant\n")
