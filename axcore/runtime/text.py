"""Text from token ids, as soon as it is certain."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no text, or not yet
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token that stands for a byte
_LONGEST = 4  # bytes of a character in UTF-8, so tokens that it may be spread over


class TextStream:
    """Turns an answer's tokens into pieces of text that join to what decoding all at once gives.

    Special tokens and ids without a token are left out. What a later token may still change is
    held back: a character that lacks bytes, and a run of byte tokens, which a decoder takes for
    text only if all of it is. The work for a token does not grow with the answer: decoding goes
    on from the last few tokens, as a character cannot reach further back.

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
        """Return the text that `token_id` makes certain; often empty."""
        token = self._tokenizer.id_to_token(token_id)
        if not token or token_id in self._special:
            return ""
        self._run.append(token_id)
        return "" if _BYTE.fullmatch(token) else self._advance(finished=False)

    def finish(self) -> str:
        """Return the text that was held back, and begin anew."""
        rest = self._advance(finished=True)
        self._last = []
        return rest

    def _advance(self, *, finished: bool) -> str:
        tokens = self._last + self._run
        known = len(_certain(self._tokenizer.decode(self._last)))
        text = self._tokenizer.decode(tokens)
        self._last, self._run = tokens[-_LONGEST:], []
        return (text if finished else _certain(text))[known:]


def _certain(text: str) -> str:
    """Return `text` without a last character that further bytes may still complete."""
    return text[:-1] if text.endswith(_REPLACEMENT) else text
