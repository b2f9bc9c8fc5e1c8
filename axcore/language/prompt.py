"""Messages to token ids: what a family writes becomes control tokens, what people write does not.

A prompt consists of pieces. `Control` and `Rows` are written by the family; text is what somebody
said, and stays text whatever it contains. A token is a control token if the tokenizer calls it
special, or if the family writes it in the prompt at hand. The other added tokens of a tokenizer,
such as those for runs of spaces, for HTML or, where the family does not write them, ``<think>``,
are part of texts; so is every token that is nothing but white space.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import BudgetError, CheckpointError, UsageError
from ..language_model import Prompt
from ..limits import PROMPT_CHARS
from ..plain import shown
from .tokenizer import load_tokenizer
from .tokenizer_files import library

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from tokenizers import AddedToken, Tokenizer

    from ..component import Sample

    Ints = np.ndarray[Any, np.dtype[np.int64]]
    Token = tuple[int, int, int]  # id, and the first and last characters in the text


@dataclass(frozen=True)
class Control:
    """Text that a family writes around messages: the markers in it become tokens.

    In a message in place of text, it stands for text whose markers are meant.
    """

    text: str


@dataclass(frozen=True)
class Rows:
    """A placeholder for rows of the vision side: `marker`, repeated `count` times."""

    marker: str
    count: int


# Messages ----------------------------------------------------------------------------------------

ROLES = ("system", "user", "assistant")


def message_parts(
    message: Mapping[str, Any], types: Sequence[str], roles: Sequence[str] = ROLES
) -> Sequence[Mapping[str, Any]]:
    """Return the parts of a chat message; a string is a single text part.

    Args:
        message: ``{"role": ..., "content": text or parts}``.
        types: Part types that the model supports, e.g. ``("text", "image")``.
        roles: Roles that it supports. Families write a role among their markers, so no other is
            let through.

    Raises:
        UsageError: The role or the type of a part is another, or something is missing.
    """
    role, content = message.get("role"), message.get("content")
    if role not in roles:
        raise UsageError(
            f"a message has the role {shown(role)}", hint=f"the model knows {', '.join(roles)}"
        )
    parts = [{"type": "text", "text": content}] if isinstance(content, (str, Control)) else content
    if not isinstance(parts, (list, tuple)):
        raise UsageError(
            f"a message has the content {shown(content)}", hint="give a text, or a list of parts"
        )
    for part in parts:
        kind = part.get("type")
        if kind not in types:
            raise UsageError(
                f"a message has a part of type `{kind}`",
                hint=f"the model supports parts of type {', '.join(types)}",
            )
        if kind not in part:
            raise UsageError(
                f"a part of type `{kind}` has no `{kind}`, only {', '.join(part)}",
                hint=f'write {{"type": "{kind}", "{kind}": ...}}',
            )
        if kind == "text" and not isinstance(part[kind], (str, Control)):
            raise UsageError(
                f"a part of type `text` has the text {shown(part[kind])}", hint="give a string"
            )
    return parts


def tiled_prompt(
    folder: Path,
    markers: Mapping[str, int | None],
    pieces: Iterable[str | Control | Rows],
    samples: Sequence[Sample],
    stop: Sequence[str],
    component: str = "vision",
) -> Prompt:
    """Return the prompt of a family whose positions count up and that has one component.

    Args:
        folder: The checkpoint, or the bundle: `Job.checkpoint.folder`.
        markers: As for `load_tokenizer`.
        pieces: As for `encode_prompt`; every `Rows` is a place for rows of the component.
        samples: What it runs on, in the order of the places.
        stop: Tokens that end an answer.
        component: Its name.
    """
    import numpy as np

    tokenizer = load_tokenizer(folder, markers)
    ids, rows = encode_prompt(tokenizer, list(pieces))
    return Prompt(
        input_ids=ids,
        position_ids=np.arange(len(ids))[None],
        vision_rows={component: np.concatenate([np.empty(0, np.int64), *rows])},
        images={component: list(samples)},
        stop_ids=tuple(i for text in stop if (i := tokenizer.token_to_id(text)) is not None),
    )


# Encode ------------------------------------------------------------------------------------------


def encode_prompt(
    tokenizer: Tokenizer, pieces: Sequence[str | Control | Rows]
) -> tuple[Ints, list[Ints]]:
    """Encode a prompt and return the positions of its placeholders.

    The pieces are encoded as one text, because tokenizers treat the beginning of a text
    differently and merge across pieces. Only if that makes a control token of something that
    somebody said, the text between the family's own control tokens is encoded without them.

    Args:
        tokenizer: From `load_tokenizer`, which has checked the markers.
        pieces: Text as it was said, what the family writes around it, and placeholders, in order.

    Returns:
        The ids, int64 ``[n]``, and for each `Rows` the int64 positions of its tokens.

    Raises:
        UsageError: A text contains bytes that are not valid UTF-8.
        BudgetError: The texts are longer than any context.
        CheckpointError: The tokenizer fails.
    """
    import numpy as np

    texts = [_text(piece) for piece in pieces]
    _check_texts([text for text, p in zip(texts, pieces, strict=True) if not isinstance(p, Rows)])
    borders = np.cumsum([0, *map(len, texts)])
    own = _runs(pieces, borders.tolist())
    text = "".join(texts)
    with library("the tokenizer cannot encode the prompt"):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        control = _control_tokens(tokenizer, [text[start:end] for start, end in own])
        tokens = np.array(
            [(number, *span) for number, span in zip(encoded.ids, encoded.offsets, strict=True)],
            np.int64,
        ).reshape(-1, 3)
        if _said(tokens, control, own):
            tokens = np.array([*_apart(tokenizer, text, control, own)], np.int64).reshape(-1, 3)
    ids, starts, ends = tokens.T
    places = [
        np.flatnonzero((starts >= start) & (ends <= end) & (starts < ends))
        for piece, start, end in zip(pieces, borders[:-1], borders[1:], strict=True)
        if isinstance(piece, Rows)
    ]
    return ids.copy(), places


def _text(piece: str | Control | Rows) -> str:
    if isinstance(piece, Rows):
        return piece.marker * piece.count
    return piece.text if isinstance(piece, Control) else piece


def _check_texts(texts: Sequence[str]) -> None:
    """Refuse what no context holds, and lone surrogates.

    Python decodes invalid UTF-8 of arguments and files to surrogates.
    """
    if (length := sum(map(len, texts))) > PROMPT_CHARS:
        raise BudgetError(
            f"the prompt has {length} characters; at most {PROMPT_CHARS} are read",
            hint="shorten it: a build allows some thousand tokens",
        )
    text = "".join(texts)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the prompt is not valid UTF-8: it contains {text[error.start : error.end]!a}",
            hint="write it in UTF-8, or convert the file that it comes from with `iconv -t UTF-8`",
        ) from error


def _runs(pieces: Sequence[str | Control | Rows], borders: Sequence[int]) -> list[tuple[int, int]]:
    """Return where the text is the family's: beginning and end of each run of such pieces."""
    runs: list[tuple[int, int]] = []
    for piece, start, end in zip(pieces, borders[:-1], borders[1:], strict=True):
        if not isinstance(piece, str):
            runs.append((runs.pop()[0] if runs and runs[-1][1] == start else start, end))
    return runs


def _control_tokens(tokenizer: Tokenizer, own: Sequence[str]) -> dict[int, AddedToken]:
    """Return the control tokens by id: special ones, and those in the family's texts `own`."""
    return {
        number: token
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
        or (not _is_blank(token.content) and any(token.content in text for text in own))
    }


def _is_blank(text: str) -> bool:
    return all(char.isspace() or char == "▁" for char in text)


def _said(tokens: Ints, control: Mapping[int, AddedToken], own: Sequence[tuple[int, int]]) -> bool:
    """Return whether a control token lies outside the family's texts."""
    import numpy as np

    ids, starts, ends = tokens[np.isin(tokens[:, 0], [*control])].T
    if not len(ids) or not own:
        return bool(len(ids))
    begins, finishes = np.array(own).T
    run = np.searchsorted(begins, starts, "right") - 1
    return bool(((run < 0) | (ends > finishes[run])).any())


# Control tokens typed by people ------------------------------------------------------------------


def _apart(
    tokenizer: Tokenizer,
    text: str,
    control: Mapping[int, AddedToken],
    own: Sequence[tuple[int, int]],
) -> Iterator[Token]:
    """Yield the tokens of `text`, control tokens only where the text is the family's.

    Control tokens part a text, so that each part between two of them can be encoded by itself.
    """
    at, forbidden = 0, frozenset(control)
    for number, start, end in _found(text, control, own):
        begin = max(at, start)  # the one before may have taken the space between them
        yield from _ordinary(tokenizer, text[at:begin], at, forbidden)
        yield number, begin, end
        at = end
    yield from _ordinary(tokenizer, text[at:], at, forbidden)


def _found(
    text: str, control: Mapping[int, AddedToken], own: Sequence[tuple[int, int]]
) -> Iterator[Token]:
    """Yield the control tokens of the family's texts, with the white space that they take."""
    numbers = {token.content: number for number, token in control.items()}
    longest_first = sorted(numbers, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    for run in own:
        for found in pattern.finditer(text, *run):
            number, (start, end) = numbers[found[0]], found.span()
            if control[number].lstrip:
                while start and _is_space(text[start - 1]):
                    start -= 1
            if control[number].rstrip:
                while end < len(text) and _is_space(text[end]):
                    end += 1
            yield number, start, end


def _is_space(char: str) -> bool:
    return char.isspace() and not "\x1c" <= char <= "\x1f"  # which Unicode does not call space


def _ordinary(tokenizer: Tokenizer, text: str, at: int, control: frozenset[int]) -> Iterator[Token]:
    """Yield the tokens of a part of the prompt that begins at `at`, none of them in `control`."""
    if not text:
        return
    plain, unknown = _without(tokenizer, control, at == 0)
    encoded = plain.encode(text, add_special_tokens=False)
    for number, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        if number in control and number != unknown:
            raise CheckpointError(
                f"the tokenizer makes {shown(tokenizer.id_to_token(number))} of ordinary text",
                hint="leave that out of the prompt, or use the published tokenizer",
            )
        yield number, at + start, at + end


@lru_cache(maxsize=4)
def _without(
    tokenizer: Tokenizer, control: frozenset[int], begins: bool
) -> tuple[Tokenizer, int | None]:
    """Return the tokenizer without some added tokens, and the id that it gives unknown text.

    Args:
        tokenizer: The tokenizer.
        control: Ids of the added tokens that it must not know.
        begins: Whether what is encoded begins the prompt.
    """
    from tokenizers import Tokenizer as Made

    content = json.loads(tokenizer.to_str())
    model, added = content["model"], content["added_tokens"]
    content["added_tokens"] = kept = [token for token in added if token["id"] not in control]
    names = {token["content"] for token in added if token["id"] in control}
    unknown = model.get("unk_token")
    if isinstance(model["vocab"], dict):
        # Those kept would get new ids if the vocabulary did not have them.
        model["vocab"] |= {token["content"]: token["id"] for token in kept}
        for name in names - {unknown}:
            model["vocab"].pop(name, None)
    if "merges" in model:
        model["merges"] = [
            merge for merge in model["merges"] if names.isdisjoint([*merge, "".join(merge)])
        ]
    if not begins:
        _forget_beginning(content["pre_tokenizer"] or {})
    made = Made.from_str(json.dumps(content))
    if any(made.token_to_id(token["content"]) != token["id"] for token in kept):
        raise CheckpointError(
            "the prompt contains markers of the model as text, and the tokenizer has no ids of its"
            f" own for {len(kept)} added tokens without them",
            hint="leave the markers out of the prompt",
        )
    return made, tokenizer.token_to_id(unknown) if unknown else model.get("unk_id")


def _forget_beginning(step: dict[str, Any]) -> None:
    """Keep what treats the beginning of a text differently from the beginning of a part."""
    if step.get("prepend_scheme") == "first":
        step["prepend_scheme"] = "never"
    for inner in step.get("pretokenizers", ()):
        _forget_beginning(inner)
