"""The text file for ``axllm``, read back by the format's rules."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from axcore.errors import UnsupportedModel
from axcore.packaging.mnn_tokenizer import mnn_text

from .toys import END, tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

STOPS = (3, 261)


class Read:
    """The file as a reader on a board takes it: line by line, numbers by blanks."""

    def __init__(self, text: str) -> None:
        lines = text.split("\n")
        assert lines.pop() == ""
        self.magic, self.kind = map(int, lines[0].split())
        counts = [int(n) for n in lines[1].split()]
        ids = [int(n) for n in lines[2].split()]
        assert len(ids) == sum(counts)
        self.special, self.stop = ids[: counts[0]], ids[counts[0] : counts[0] + counts[1]]
        self.prefix = ids[counts[0] + counts[1] :]
        tokens, merges, self.splitter = (int(n) for n in lines[3].split())
        assert len(lines) == 4 + tokens + merges
        self.tokens = [decoded(line) for line in lines[4 : 4 + tokens]]
        halves = [line.split(" ", 1) for line in lines[4 + tokens :]]
        self.merges = [(decoded(left), decoded(right)) for left, right in halves]

    def tokenizer(self, like: Tokenizer) -> Tokenizer:
        """Return a tokenizer with what was read, cutting words as `like` does."""
        vocabulary = {token: i for i, token in enumerate(self.tokens) if token}
        made = Tokenizer(models.BPE(vocabulary, self.merges))
        made.pre_tokenizer, made.decoder = like.pre_tokenizer, decoders.ByteLevel()
        made.add_special_tokens([self.tokens[i] for i in self.special])
        return made


def decoded(text: str) -> str:
    return base64.b64decode(text[4:]).decode() if text.startswith("b64:") else text


@given(st.text(st.sampled_from("the cat\n 12é你<|end>b64:no"), max_size=40))
def test_what_is_read_back_encodes_alike(text: str) -> None:
    """Ids of any text, special tokens included, are those of the tokenizer. Oracle: tokenizers."""
    original = tokenizer()
    read = Read(mnn_text(original, STOPS)).tokenizer(original)
    for part in (text, f"{text}{END}{text}<two\nlines>"):
        ids = original.encode(part).ids
        assert read.encode(part).ids == ids
        assert read.decode(ids) == original.decode(ids)


def test_header_and_lines() -> None:
    """Magic and kind, then the special and stop ids, then the tokens in the order of their ids."""
    original = tokenizer()
    read = Read(mnn_text(original, STOPS))
    assert (read.magic, read.kind, read.prefix) == (430, 3, [])
    assert read.special == [original.token_to_id(t) for t in (END, "<two\nlines>", "b64:no")]
    assert read.stop == list(STOPS)
    assert [original.token_to_id(token) for token in read.tokens] == list(range(264))
    assert read.merges[0] == ("Ġ", "t")


def test_gaps_and_blanks_keep_the_lines_in_place() -> None:
    """An id without a token is an empty line; a half with a space does not end a merge."""
    vocabulary = {"a": 0, " ": 1, " a": 2, "b": 6}
    read = Read(mnn_text(Tokenizer(models.BPE(vocabulary, [(" ", "a")])), [0]))
    assert read.tokens == ["a", " ", " a", "", "", "", "b"]
    assert read.merges == [(" ", "a")]


@pytest.mark.parametrize(
    ("patterns", "splitter"),
    [
        ((), 0),
        ((r"\p{L}+|\p{N}|\s+",), 2),
        ((r"[\p{L}\p{M}]+|\p{N}|\s+",), 1),
        ((r"\p{N}{1,3}", r"\p{L}+|\s+"), 3),
        ((r"[\p{Lu}\p{Lt}]*[\p{Ll}]+|\p{N}{1,3}",), 4),
    ],
)
def test_the_splitter_follows_the_pattern(patterns: Sequence[str], splitter: int) -> None:
    """The patterns are those of published tokenizers, shortened; the numbers are the reader's."""
    made = tokenizer()
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel()])
    assert Read(mnn_text(made, STOPS)).splitter == splitter
    if not patterns:
        made.pre_tokenizer = None
        assert Read(mnn_text(made, STOPS)).splitter == 0


def test_another_kind_is_refused() -> None:
    """The message names the kind, the hint the runtime that takes it."""
    made = Tokenizer(models.Unigram([("a", -1.0)], unk_id=0))
    with pytest.raises(UnsupportedModel, match="Unigram") as caught:
        mnn_text(made, STOPS)
    assert "--runtime python" in caught.value.hint
