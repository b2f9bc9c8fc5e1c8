"""Read a tokenizer's files, which come with a checkpoint and are not trusted.

The library that runs tokenizers believes what such a file says: text may grow without bound in
steps that multiply it, a regular expression may take for ever, and contradictions abort. So the
structure of a file is checked before the library sees it.
"""

from __future__ import annotations

import base64
import struct
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..foreign import decode_json, read_bytes, reason
from ..limits import (
    ADDED_TOKENS,
    CONFIG_BYTES,
    TOKEN_CHARS,
    TOKEN_IDS,
    TOKENIZER_BYTES,
    TOKENIZER_GROWTH,
    TOKENIZER_STEPS,
    VALUES,
)
from ..plain import shown
from .patterns import check_pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from tokenizers import AddedToken, Tokenizer

    Step = Mapping[str, Any]

WHOLE = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
ADDED, SETTINGS = "added_tokens.json", "tokenizer_config.json"

# How text is split into words if `tokenizer_config.json` does not say: the pattern of nearly all
# byte-level tokenizers that are published as two files.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a file like ``tokenizer.json``, without truncation or padding.

    Raises:
        CheckpointError: It cannot be read, contradicts itself, or could take for ever.
    """
    from tokenizers import Tokenizer

    with _explained(path):
        content = read_bytes(path, TOKENIZER_BYTES)
        _check_whole(decode_json(content))
    with library(f"the tokenizer cannot be read\n  from: {path}"):
        tokenizer = Tokenizer.from_buffer(content)
    # Settings in the file would otherwise cut or pad prompts without notice.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def assemble_tokenizer(paths: Mapping[str, Path]) -> Tokenizer:
    """Return a byte-level BPE made from vocabulary, merges and added tokens.

    Args:
        paths: Its files by name: `VOCABULARY`, `MERGES`, and `ADDED` and `SETTINGS` if there.

    Raises:
        CheckpointError: A file cannot be read, or they contradict each other.
    """
    from tokenizers import Tokenizer, models

    parts: dict[str, Any] = {}
    for name, path in paths.items():
        with _explained(path):
            parts[name] = _READ[name](path)
    settings, vocabulary = parts.get(SETTINGS, {}), parts[VOCABULARY]
    added = {**parts.get(ADDED, {}), **settings.get("added", {})}
    # Tokens in the vocabulary keep their ids; added afterwards, they would get new ones.
    ids = {**vocabulary, **{token.content: number for number, token in added.items()}}
    with _explained(paths[VOCABULARY]):
        _check_ids(ids, "with the added tokens")
    with library(f"the tokenizer cannot be read\n  from: {', '.join(map(str, paths.values()))}"):
        tokenizer = Tokenizer(models.BPE(ids, parts[MERGES]))
        _cut_words(tokenizer, settings.get("words", WORDS))
        tokenizer.add_tokens([added[number] for number in sorted(added)])
    return tokenizer


@contextmanager
def library(fact: str) -> Iterator[None]:
    """Turn what the library for tokenizers raises, its panics included, into `CheckpointError`."""
    try:
        yield
    except BaseException as error:  # a panic of pyo3 is no Exception
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise CheckpointError(f"{fact}\n  {shown(str(error), 300)}", hint=AGAIN) from error


AGAIN = "fetch the published files again"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer cannot be read\n  {reason(error)}\n  from: {path}", hint=AGAIN
        ) from error


# Two files ---------------------------------------------------------------------------------------


def _cut_words(tokenizer: Tokenizer, words: str) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()


def _vocabulary(path: Path) -> dict[str, int]:
    found = decode_json(read_bytes(path, TOKENIZER_BYTES))
    _check_ids(found, "the file")
    return found  # type: ignore[no-any-return]


def _merges(path: Path) -> list[tuple[str, ...]]:
    content = read_bytes(path, TOKENIZER_BYTES)
    if content.count(b"\n") > VALUES:
        raise ValueError(f"it has more than {VALUES} lines")
    lines = content.decode().split("\n")
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip("\r")]
    if merges and merges[0][0] == "#version:":
        del merges[0]
    for merge in merges:
        if len(merge) != 2:
            raise ValueError(f"{shown(' '.join(merge))} is no merge of two tokens")
    return merges


def _named(path: Path) -> dict[int, AddedToken]:
    """Return added tokens by id; those listed without properties are special."""
    from tokenizers import AddedToken

    ids = decode_json(read_bytes(path, CONFIG_BYTES))
    _check_ids(ids, "the file")
    return {number: AddedToken(text, special=True) for text, number in ids.items()}


def read_settings(path: Path) -> dict[str, Any]:
    """Return the content of ``tokenizer_config.json``.

    Raises:
        CheckpointError: It cannot be read.
    """
    with _explained(path):
        return _typed(decode_json(read_bytes(path, CONFIG_BYTES)), dict, "the file")  # type: ignore[no-any-return]


def _settings(path: Path) -> dict[str, Any]:
    """Return what settings say: added tokens by id, and how words are cut."""
    from tokenizers import AddedToken

    content, where = read_settings(path), "added_tokens_decoder"
    listed = _typed(content.get(where) or {}, dict, where)
    tokens = [
        {**_typed(token, dict, f"{where}.{name}"), "id": int(name) if _is_number(name) else name}
        for name, token in listed.items()
    ]
    _check_added(tokens, where)
    settings: dict[str, Any] = {
        "added": {
            token["id"]: AddedToken(token["content"], **{f: token.get(f, False) for f in FLAGS})
            for token in tokens
        }
    }
    if words := content.get("pretokenize_regex"):
        check_pattern(_typed(words, str, "pretokenize_regex"))
        settings["words"] = words
    return settings


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 20


_READ: Mapping[str, Callable[[Path], Any]] = {
    VOCABULARY: _vocabulary,
    MERGES: _merges,
    ADDED: _named,
    SETTINGS: _settings,
}


# One file ----------------------------------------------------------------------------------------


def _check_whole(content: Any) -> None:
    """Check the content of ``tokenizer.json``.

    Where a key appears twice, the library takes the last one too.

    Raises:
        ValueError: Something is wrong; the message names the path in the file.
    """
    _typed(content, dict, "the file")
    _check_model(_typed(content.get("model"), dict, "model"))
    for sections in ("normalizer", "pre_tokenizer"), ("decoder",), ("post_processor",):
        steps = [growth for section in sections for growth in _steps(content, section)]
        if prod(steps) > TOKENIZER_GROWTH:
            raise ValueError(
                f"the steps of {' and '.join(sections)} make up to {prod(steps):.3g} bytes of one;"
                f" at most {TOKENIZER_GROWTH} are made"
            )
    _check_added(_typed(content.get("added_tokens") or [], list, "added_tokens"), "added_tokens")


def _check_model(model: Step) -> None:
    # Early files do not name the type; of these, only the one with merges is known.
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram", "WordLevel", "WordPiece"):
        raise ValueError(f"model.type: {shown(kind)} is not a model that is known")
    if kind == "Unigram":
        _typed(model.get("vocab"), list, "model.vocab")
    else:
        _check_ids(model.get("vocab"), "model.vocab")
    if model.get("dropout"):
        raise ValueError("model.dropout: equal texts would become different tokens")
    most = model.get("max_input_chars_per_word", 100)
    if kind == "WordPiece" and not 0 < _typed(most, int, "model.max_input_chars_per_word") <= 1000:
        raise ValueError(f"model.max_input_chars_per_word: {shown(most)} is not from 1 to 1000")


def _check_ids(vocabulary: Any, where: str) -> None:
    """Check a mapping of tokens to ids."""
    ids = _typed(vocabulary, dict, where).values()
    if wrong := [number for number in ids if type(number) is not int]:
        raise ValueError(f"{where}: {shown(wrong[0])} is not an id")
    if ids and not (min(ids) >= 0 and max(ids) < TOKEN_IDS):
        wrong = [min(ids) if min(ids) < 0 else max(ids)]
        raise ValueError(f"{where}: the id {shown(wrong[0])} is not below {TOKEN_IDS}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"{where}: {_twice(ids)} is the id of two tokens")
    if max(map(len, vocabulary), default=0) > TOKEN_CHARS:
        raise ValueError(f"{where}: a token has more than {TOKEN_CHARS} characters")


def _twice(ids: Collection[int]) -> int:
    ordered = sorted(ids)
    return next(a for a, b in pairwise(ordered) if a == b)


def _check_added(tokens: Sequence[Any], where: str) -> None:
    if len(tokens) > ADDED_TOKENS:
        raise ValueError(f"{where}: {len(tokens)} tokens; at most {ADDED_TOKENS} are read")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        place = f"{where}[{index}]"
        text = _typed(_typed(token, dict, place).get("content"), str, f"{place}.content")
        number = _typed(token.get("id"), int, f"{place}.id")
        for flag in FLAGS:
            _typed(token.get(flag, False), bool, f"{place}.{flag}")
        if not text or ids.setdefault(text, number) != number:
            raise ValueError(f"{place}: {shown(text)} is empty, or has two ids")
    _check_ids(ids, where)


# Steps -------------------------------------------------------------------------------------------


def _steps(content: Step, section: str) -> Iterator[int]:
    """Yield for each step of a section how many bytes it makes of one at most."""
    inner, known = _SECTIONS[section]
    waiting = [(section, content[section])] if content.get(section) else []
    for where, step in waiting:  # grows
        if len(waiting) > TOKENIZER_STEPS:
            raise ValueError(f"{section}: more than {TOKENIZER_STEPS} steps")
        kind = _typed(step, dict, where).get("type")
        if kind == "Sequence":
            parts = _typed(step.get(inner), list, f"{where}.{inner}")
            waiting += [(f"{where}.{inner}[{i}]", part) for i, part in enumerate(parts)]
            yield 1
        elif isinstance(kind, str) and kind in known:
            try:
                yield _GROWTH.get((section, kind), _none)(step)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        else:
            raise ValueError(f"{where}.type: {shown(kind)} is not a step that is known")


def _none(_: Step) -> int:
    return 1


def _replaced(step: Step) -> int:
    text = _typed(step.get("content"), str, "content").encode()
    least = _pattern(step)
    # What may match nothing matches between all characters.
    return max(1, -(-len(text) // least)) if least else 1 + len(text)


def _split(step: Step) -> int:
    _pattern(step)
    return 1


def _pattern(step: Step) -> int:
    """Check the pattern of a step; return how many bytes it matches at least."""
    pattern = _typed(step.get("pattern"), dict, "pattern")
    if pattern.keys() == {"Regex"}:
        return check_pattern(_typed(pattern["Regex"], str, "pattern.Regex"))
    if pattern.keys() != {"String"}:
        raise ValueError("pattern: neither a text nor a regular expression")
    return len(_typed(pattern["String"], str, "pattern.String").encode())


def _prepended(step: Step) -> int:
    return 1 + len(_typed(step.get("prepend"), str, "prepend").encode())


def _mapped(step: Step) -> int:
    """Check the table of a sentencepiece model: the size of a trie, the trie, and texts."""
    table = step.get("precompiled_charsmap")
    content = base64.b64decode(_typed(table, str, "precompiled_charsmap"), validate=True)
    size = struct.unpack_from("<I", content)[0] if len(content) > 4 else 0
    if not size or size % 4 or size + 4 > len(content):
        raise ValueError("precompiled_charsmap: it has no trie")
    return max(map(len, content[4 + size :].decode().encode().split(b"\0")))


def _pieces(step: Step) -> int:
    for name in ("single", "pair"):
        if len(_typed(step.get(name), list, name)) > _TEMPLATE:
            raise ValueError(f"{name}: more than {_TEMPLATE} pieces")
    return 1


_TEMPLATE = 16  # a template for pairs has five


def _fixed(step: Step) -> int:
    if _typed(step.get("length"), int, "length") < 1:
        raise ValueError("length: less than 1")
    return 1


def _bytes(_: Step) -> int:
    return 2  # of a byte, a character of two bytes


def _spaced(_: Step) -> int:
    return 4  # a character of up to four bytes for a space, or before a word


# The key under which a sequence has its steps, and the steps that are known.
_SECTIONS: Mapping[str, tuple[str, frozenset[str]]] = {
    "normalizer": ("normalizers", frozenset({
        "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt",
        "Precompiled", "Prepend", "Replace", "Strip", "StripAccents",
    })),
    "pre_tokenizer": ("pretokenizers", frozenset({
        "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Delimiter", "Digits",
        "FixedLength", "Metaspace", "Punctuation", "Split", "UnicodeScripts", "Whitespace",
        "WhitespaceSplit",
    })),
    "decoder": ("decoders", frozenset({
        "BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip",
        "WordPiece",
    })),
    "post_processor": ("processors", frozenset({
        "BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing",
    })),
}  # fmt: skip

_GROWTH: Mapping[tuple[str, str], Callable[[Step], int]] = {
    ("normalizer", "ByteLevel"): _bytes,
    ("normalizer", "Precompiled"): _mapped,
    ("normalizer", "Prepend"): _prepended,
    ("normalizer", "Replace"): _replaced,
    ("pre_tokenizer", "ByteLevel"): _bytes,
    ("pre_tokenizer", "FixedLength"): _fixed,
    ("pre_tokenizer", "Metaspace"): _spaced,
    ("pre_tokenizer", "Split"): _split,
    ("decoder", "Replace"): _replaced,
    ("post_processor", "TemplateProcessing"): _pieces,
}


def _typed(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{where}: {shown(value)} is not of type {kind.__name__}")
    return value
