"""Decode token ids to text incrementally, as soon as later tokens cannot change it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..language.tokenizer_files import library

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"  # decoders write it for bytes that are not, or not yet, valid UTF-8
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token for a single byte
_LONGEST = 4  # bytes of a UTF-8 character, and so the most tokens that it can span


class TextStream:
    """Turns the tokens of an answer into pieces of text that join to the decoded whole.

    Special tokens and ids without a token are left out. Text that a later token may still change is
    held back: a character with missing bytes, and a run of byte tokens, which decoders accept only
    if the whole run is valid. The work per token does not grow with the answer: decoding restarts
    from the last few tokens, because a character cannot span more.

    >>> stream = TextStream(tokenizer)
    >>> text = "".join(map(stream.push, ids)) + stream.finish()
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._last: list[int] = []  # the end of what was decoded
        self._run: list[int] = []  # byte tokens behind it

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now final; often empty."""
        token = self._tokenizer.id_to_token(token_id)
        if not token or token_id in self._special:
            return ""
        self._run.append(token_id)
        return "" if _BYTE.fullmatch(token) else self._advance(finished=False)

    def finish(self) -> str:
        """Return the text that was held back, and reset the stream."""
        rest = self._advance(finished=True)
        self._last = []
        return rest

    def _advance(self, *, finished: bool) -> str:
        tokens = self._last + self._run
        with library("the tokenizer cannot decode the answer"):
            known = len(_certain(self._tokenizer.decode(self._last)))
            text = self._tokenizer.decode(tokens)
        self._last, self._run = tokens[-_LONGEST:], []
        return (text if finished else _certain(text))[known:]


def _certain(text: str) -> str:
    """Return `text` without an incomplete last character."""
    return text[:-1] if text.endswith(_REPLACEMENT) else text
