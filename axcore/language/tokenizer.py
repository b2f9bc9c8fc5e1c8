"""Load tokenizers from a checkpoint's files and encode prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from tokenizers import AddedToken, Tokenizer

    Ints = np.ndarray[Any, np.dtype[np.int64]]

WHOLE = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
ADDED, SETTINGS = "added_tokens.json", "tokenizer_config.json"

# How text is split into words if `tokenizer_config.json` does not say: the pattern of nearly all
# byte-level tokenizers that are published as two files.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Rows:
    """A placeholder for rows of the vision side: `marker`, repeated `count` times."""

    marker: str
    count: int


# Load --------------------------------------------------------------------------------------------


def load_tokenizer(folder: Path, markers: Mapping[str, int | None] | Iterable[str]) -> Tokenizer:
    """Return the tokenizer of a checkpoint, without truncation or padding.

    ``tokenizer.json`` is loaded directly, not through a class of transformers, because some of
    those lose markers. Without that file, a byte-level BPE is made from ``vocab.json`` and
    ``merges.txt``, with the added tokens of ``tokenizer_config.json`` or ``added_tokens.json``.
    The tokenizer is cached until a file changes.

    Args:
        folder: The checkpoint, or a folder with copies of its files.
        markers: Texts that must be a single token each; a mapping also gives the expected ids, or
            None where the config has none.

    Raises:
        CheckpointError: There is no tokenizer, it cannot be read, it splits a marker, or it gives
            a marker another id.
    """
    tokenizer = _load(*_files(folder))
    expected = markers if isinstance(markers, Mapping) else dict.fromkeys(markers)
    for marker, wanted in expected.items():
        _check_marker(tokenizer, folder, marker, wanted)
    return tokenizer


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Return the tokenizer's files, each with its modification time in ns."""
    for needed, useful in (((WHOLE,), ()), ((VOCABULARY, MERGES), (ADDED, SETTINGS))):
        if all((folder / name).is_file() for name in needed):
            paths = [folder / name for name in (*needed, *useful)]
            return [(path, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    raise CheckpointError(
        f"the checkpoint has no tokenizer: {folder / WHOLE} does not exist",
        hint=f"put the published {WHOLE}, or {VOCABULARY} and {MERGES}, into the folder",
    )


@lru_cache(maxsize=4)
def _load(*files: tuple[Path, int]) -> Tokenizer:
    from tokenizers import Tokenizer

    paths = {path.name: path for path, _ in files}
    try:
        whole = paths.get(WHOLE)
        tokenizer = Tokenizer.from_file(str(whole)) if whole else _assembled(paths)
    except Exception as error:  # the library raises nothing narrower
        names = ", ".join(map(str, paths.values()))
        raise CheckpointError(
            f"the tokenizer cannot be read\n  {error}\n  from: {names}",
            hint="fetch the published files again",
        ) from error
    # Settings in the file would otherwise cut or pad prompts without notice.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _assembled(paths: Mapping[str, Path]) -> Tokenizer:
    """Build a byte-level BPE from vocabulary, merges and added tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary, merges = models.BPE.read_file(str(paths[VOCABULARY]), str(paths[MERGES]))
    settings = _read(paths.get(SETTINGS))
    added = _added_tokens(_read(paths.get(ADDED)), settings.get("added_tokens_decoder", {}))
    # Tokens in the vocabulary keep their ids; added afterwards, they would get new ones.
    ids = {token.content: number for number, token in added.items()}
    tokenizer = Tokenizer(models.BPE({**vocabulary, **ids}, merges))
    words = Regex(settings.get("pretokenize_regex") or WORDS)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([added[number] for number in sorted(added)])
    return tokenizer


def _read(path: Path | None) -> Any:
    return json.loads(path.read_bytes()) if path else {}


def _added_tokens(
    ids: Mapping[str, int], described: Mapping[str, Mapping[str, Any]]
) -> dict[int, AddedToken]:
    """Return the added tokens by id; those listed without properties are special."""
    from tokenizers import AddedToken

    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    plain = {number: AddedToken(text, special=True) for text, number in ids.items()}
    full = {
        int(number): AddedToken(
            token["content"], **{name: token.get(name, False) for name in names}
        )
        for number, token in described.items()
    }
    return {**plain, **full}


def _check_marker(tokenizer: Tokenizer, folder: Path, marker: str, wanted: int | None) -> None:
    # Doubled, because an ordinary word can be a single token alone but merge with its neighbours.
    ids = tokenizer.encode(marker * 2, add_special_tokens=False).ids
    found = ids[0] if ids == ids[:1] * 2 else None
    if found is None:
        raise CheckpointError(
            f"the tokenizer splits `{marker}`: twice in a row it becomes the ids {ids}\n"
            f"  in: {folder}",
            hint=f"put the published {WHOLE} into the folder; saving a tokenizer with another class"
            " than its own loses such markers",
        )
    if wanted is not None and found != wanted:
        raise CheckpointError(
            f"the tokenizer gives `{marker}` the id {found}, the config says {wanted}\n"
            f"  in: {folder}",
            hint="use config and tokenizer of one checkpoint",
        )


# Encode ------------------------------------------------------------------------------------------


def message_parts(message: Mapping[str, Any], types: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Return the parts of a chat message; a string is a single text part.

    Args:
        message: ``{"role": ..., "content": text or parts}``.
        types: Part types that the model supports, e.g. ``("text", "image")``.

    Raises:
        UsageError: A part has another type, or lacks the key named like its type.
    """
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
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
    return parts


def encode_prompt(tokenizer: Tokenizer, pieces: Sequence[str | Rows]) -> tuple[Ints, list[Ints]]:
    """Encode a prompt and return the positions of its placeholders.

    The pieces are encoded as one text, because tokenizers treat the beginning of a text
    differently. Markers typed by a user are encoded as markers but are not placeholders.

    Args:
        tokenizer: From `load_tokenizer`, which has checked the markers.
        pieces: Text, special tokens included, and placeholders, in order.

    Returns:
        The ids, int64 ``[n]``, and for each `Rows` the int64 positions of its tokens.

    Raises:
        UsageError: A text contains bytes that are not valid UTF-8.
    """
    import numpy as np

    texts = [piece.marker * piece.count if isinstance(piece, Rows) else piece for piece in pieces]
    _check_text("".join(texts))
    encoded = tokenizer.encode("".join(texts), add_special_tokens=False)
    starts, ends = np.array(encoded.offsets, np.int64).reshape(-1, 2).T
    borders = np.cumsum([0, *map(len, texts)])
    places = [
        np.flatnonzero((starts >= start) & (ends <= end) & (starts < ends))
        for piece, start, end in zip(pieces, borders[:-1], borders[1:], strict=True)
        if isinstance(piece, Rows)
    ]
    return np.array(encoded.ids, np.int64), places


def _check_text(text: str) -> None:
    """Refuse lone surrogates: Python decodes invalid UTF-8 of arguments and files to them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the prompt is not valid UTF-8: it contains {text[error.start : error.end]!a}",
            hint="write it in UTF-8, or convert the file that it comes from with `iconv -t UTF-8`",
        ) from error
