"""Agreement of answers. The oracles are answers that were changed at a known place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from axcore import UsageError
from axcore.evaluate import Divergence, agreement, tokens_of, words

if TYPE_CHECKING:
    from pathlib import Path


@given(st.text())
def test_words_lose_nothing(text: str) -> None:
    """So that different texts have different words. Oracle: the text."""
    assert "".join(words(text)) == text


@given(st.lists(st.sampled_from("ab"), max_size=9), st.data())
def test_the_first_difference_is_found(tokens: list[str], data: st.DataObject) -> None:
    """A word is put in, which cuts the common beginning there. Oracle: the place it was put."""
    place = data.draw(st.integers(0, len(tokens)))
    first, second = " ".join(tokens), " ".join([*tokens[:place], "x", *tokens[place:]])
    space = " " if place else ""
    one = " ".join(tokens[place : place + 1])
    (found,) = agreement({"1.jpg": (first, second)}).divergences
    assert found == Divergence("1.jpg", place, one and space + one, f"{space}x")


def test_the_share_of_equal_answers() -> None:
    """White space counts; the earliest divergence comes first. Oracle: by hand."""
    result = agreement(
        {
            "a": ("A cat.", "A cat."),
            "b": ("A cat on a mat", "A cat on the mat"),
            "c": ("A cat", "A cat "),
            "d": ("One", "A cat"),
        }
    )
    assert (result.count, result.equal, result.share) == (4, 1, 0.25)
    assert result.divergences == (
        Divergence("d", 0, "One", "A"),
        Divergence("c", 2, "", " "),
        Divergence("b", 3, " a", " the"),
    )
    assert agreement({"a": ("", "")}).share == 1


def test_tokens_instead_of_words(tmp_path: Path) -> None:
    """A tokenizer's own pieces are compared. Oracle: a tokenizer with a token per character."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate("?abc")}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-c]"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        result = agreement({"1.jpg": ("abca", "abba")}, tokens_of(place))
        assert result.divergences == (Divergence("1.jpg", 2, "c", "b"),)


def test_no_tokenizer(tmp_path: Path) -> None:
    """Oracle: the message."""
    with pytest.raises(UsageError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        tokens_of(tmp_path)
