"""Streamed text against decoding everything at once, by the tokenizers library."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from axcore.runtime.text import TextStream

PIECES = ["你", "好", "é", "🙂", "👩‍🚀", "Ж", "a", " the", "\n", "  ", "\ufffd", "\u0301"]
SPECIAL = "<|end|>"


def byte_level() -> Tokenizer:
    """A byte-level tokenizer: every byte, and characters split at every place between bytes."""
    units = pre_tokenizers.ByteLevel.alphabet()
    spelled = [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(p) for p in PIECES]
    words = ["".join(text for text, _ in parts) for parts in spelled]
    parts = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, i + 6)}
    vocabulary = {
        token: i for i, token in enumerate(dict.fromkeys([*sorted(units), *sorted(parts)]))
    }
    return finished(Tokenizer(models.BPE(vocabulary, [])), decoders.ByteLevel())


def with_byte_tokens() -> Tokenizer:
    """A tokenizer of the sentencepiece kind: spaces as ``▁``, bytes as tokens of their own."""
    words = ["▁", "▁the", "▁▁", "cat", "é", "你", "\ufffd", "▁<0x"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    return finished(Tokenizer(model), decoders.Sequence(steps))


def with_prefix_space() -> Tokenizer:
    """A tokenizer whose decoder drops the first space: Metaspace."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "▁", "▁a", "b", "▁▁c", "é"])}
    model = models.Unigram([(token, -1.0) for token in vocabulary], unk_id=0)
    return finished(Tokenizer(model), decoders.Metaspace())


def with_word_pieces() -> Tokenizer:
    """A tokenizer whose decoder sets the spaces itself."""
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "a", "##b", "c", ".", "'"])}
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return finished(Tokenizer(model), decoders.WordPiece())


def finished(tokenizer: Tokenizer, decoder: Any) -> Tokenizer:
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    return tokenizer


KINDS = {
    make.__name__: make()
    for make in (byte_level, with_byte_tokens, with_prefix_space, with_word_pieces)
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_join_to_the_whole(kind: str, data: st.DataObject) -> None:
    """Any ids, special and unknown ones among them, any bytes, valid or not. Oracle: one decode."""
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=60))
    stream = TextStream(tokenizer)
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)


@given(st.text(st.sampled_from([c for piece in PIECES[:10] for c in piece])))
def test_characters_come_as_soon_as_they_are_complete(text: str) -> None:
    """Byte by byte, what is out is the text of the complete characters. Oracle: Python's UTF-8."""
    tokenizer = KINDS["byte_level"]
    vocabulary = tokenizer.get_vocab()
    spell = {byte: vocabulary[unit] for byte, unit in byte_units().items()}
    stream = TextStream(tokenizer)
    pieces = [stream.push(spell[byte]) for byte in text.encode()]
    for count, out in enumerate(accumulate(pieces), 1):
        assert out == text.encode()[:count].decode(errors="ignore")
    assert stream.finish() == ""


def test_special_tokens_do_not_tear_characters() -> None:
    """They may lie between the bytes of one, however many. Oracle: one decode, which drops them."""
    tokenizer = KINDS["byte_level"]
    end = tokenizer.get_vocab()[SPECIAL]
    units = byte_units()
    ids = [
        token
        for byte in "é🙂".encode()
        for token in (tokenizer.get_vocab()[units[byte]], *[end] * 5)
    ]
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids) == "é🙂"


def byte_units() -> dict[int, str]:
    """Return the character that stands for each byte of UTF-8, as the tokenizers library spells."""
    letters = [
        chr(c)
        for c in (*range(0x100), *range(0x400, 0x440), 0x4F60, 0x597D, *range(0x1F600, 0x1F640))
    ]
    letters += list("👩‍🚀🙂")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        byte: unit
        for letter in letters
        for byte, unit in zip(letter.encode(), spelled.pre_tokenize_str(letter)[0][0], strict=True)
    }


def test_a_stream_begins_anew() -> None:
    """After `finish`, the first word has no space before it again. Oracle: one decode of each."""
    tokenizer = KINDS["with_byte_tokens"]
    the = tokenizer.get_vocab()["▁the"]
    stream = TextStream(tokenizer)
    for _ in range(2):
        assert stream.push(the) + stream.push(the) + stream.finish() == "the the"


class Counted:
    """The byte-level tokenizer, noting how many tokens each decoding was given."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(KINDS["byte_level"], name)

    def decode(self, ids: list[int]) -> str:
        self.lengths.append(len(ids))
        return KINDS["byte_level"].decode(ids)


def test_work_does_not_grow_with_the_answer() -> None:
    """However long the answer, be it no text at all, at most five tokens are decoded at a time."""
    tokenizer: Any = Counted()
    broken = tokenizer.token_to_id(byte_units()[0x80])
    word = tokenizer.token_to_id("a")
    stream = TextStream(tokenizer)
    for token in [broken] * 300 + [word] * 300:
        stream.push(token)
    assert max(tokenizer.lengths) == 5
    assert len(tokenizer.lengths) <= 2 * 600
