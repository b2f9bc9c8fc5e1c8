"""Tokenizers read from files, and prompts encoded with them."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import Qwen2Tokenizer

from axcore import CheckpointError, load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "b"), ("ab", "ab"), ("1", "2"), ("Ġ", "a"), ("Ġa", "b")]
VOCABULARY = {text: index for index, text in enumerate([*ALPHABET, *(a + b for a, b in MERGES)])}
# With a gap, as ids of published tokenizers have them.
ADDED = {"<|end|>": 300, "<|pad|>": 302, "<tool>": 303}
MARKERS = {"<|end|>": 300, "<|pad|>": None}


def whole() -> Tokenizer:
    """A small tokenizer of bytes with two special tokens, as ``tokenizer.json`` would hold it."""
    made = Tokenizer(models.BPE({**VOCABULARY, **ADDED}, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken(text, special=True) for text in ("<|end|>", "<|pad|>")])
    return made


def write_pair(folder: Path, settings_: dict[str, Any] | None = None) -> Path:
    """Write the files of a tokenizer that comes without ``tokenizer.json``."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES)]))
    if settings_ is None:
        (folder / "added_tokens.json").write_text(json.dumps(ADDED))
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return folder


def described(**more: Any) -> dict[str, Any]:
    """Settings that describe the added tokens; the last one is not special."""
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    listed = {
        str(number): {"content": text, **flags, "special": text != "<tool>"}
        for text, number in ADDED.items()
    }
    return {"added_tokens_decoder": listed, **more}


# Load --------------------------------------------------------------------------------------------


def test_the_published_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """Same ids, and what was saved of truncation and padding is off.

    Oracle: the tokenizer that was saved.
    """
    saved = whole()
    text = "ab<|end|> 12é" * 3
    expected = saved.encode(text).ids
    saved.enable_truncation(4)
    saved.enable_padding(length=99)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path, MARKERS).encode(text).ids == expected


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files, with added tokens by name alone and described."""
    folders = [tmp_path_factory.mktemp(name) for name in ("named", "described")]
    return [write_pair(folders[0]), write_pair(folders[1], described())]


@pytest.fixture(scope="module")
def upstream() -> Tokenizer:
    """The oracle: transformers' class for this kind of tokenizer."""
    made = Qwen2Tokenizer(VOCABULARY, MERGES).backend_tokenizer
    made.add_special_tokens(list(ADDED))
    assert isinstance(made, Tokenizer)
    return made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["ab", " ab", "12", "\n\n", "It's", "é漢", *ADDED]) | st.text()))
def test_two_files_make_the_tokenizer_that_their_class_makes(
    pairs: list[Path], upstream: Tokenizer, texts: list[str]
) -> None:
    """Any text becomes the same tokens and comes back. Oracle: transformers."""
    text = "".join(texts).replace("<|endoftext|>", "")  # a token of the class alone
    expected = upstream.encode(text)
    for folder in pairs:
        made = load_tokenizer(folder, ADDED)
        assert made.encode(text).tokens == expected.tokens
        decoded = made.decode(made.encode(text).ids, skip_special_tokens=False)
        assert decoded == upstream.decode(expected.ids, skip_special_tokens=False)


def test_added_tokens_are_special_where_the_settings_say_so(tmp_path: Path) -> None:
    """Special ones are left out of text. Oracle: the flags that were written."""
    ids = [VOCABULARY["a"], 300, 303]
    named = load_tokenizer(write_pair(tmp_path / "named"), ADDED)
    assert named.decode(ids) == "a"
    told = load_tokenizer(write_pair(tmp_path / "described", described()), ADDED)
    assert told.decode(ids) == "a<tool>"


def test_settings_may_say_how_words_are_cut(tmp_path: Path) -> None:
    """A pattern of their own is used: here no word is longer than a letter. Oracle: the ids."""
    made = load_tokenizer(write_pair(tmp_path, described(pretokenize_regex=".")), ADDED)
    assert made.encode("ab").ids == [VOCABULARY["a"], VOCABULARY["b"]]


def test_a_tokenizer_is_read_once_until_its_file_changes(tmp_path: Path) -> None:
    """Oracle: identity, and the token of the second file."""
    path = tmp_path / "tokenizer.json"
    whole().save(str(path))
    first = load_tokenizer(tmp_path, MARKERS)
    assert load_tokenizer(tmp_path, MARKERS) is first
    other = whole()
    other.add_special_tokens(["<|new|>"])
    other.save(str(path))
    os.utime(path, ns=(1, 1))
    assert load_tokenizer(tmp_path, ["<|new|>"]).token_to_id("<|new|>") is not None


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    """One file of two is none. Oracle: the file that is named."""
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist") as caught:
        load_tokenizer(tmp_path, MARKERS)
    assert "merges.txt" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0", "model": {"type": "odd"}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    """Oracle: the name of the file."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read[^$]*tokenizer\.json"):
        load_tokenizer(tmp_path, MARKERS)


@pytest.mark.parametrize(
    ("markers", "evidence"),
    [
        (["<|pad|>", "<x>"], f"splits `<x>`.*{re.escape(str(whole().encode('<x><x>').ids))}"),
        (["ab"], "splits `ab`"),  # one token alone, but two of them merge
        ({"<|pad|>": 7}, r"`<\|pad\|>` the id 302, the config says 7"),
    ],
)
def test_a_marker_that_is_none_is_named_with_its_ids(
    tmp_path: Path, markers: Any, evidence: str
) -> None:
    """Text to the tokenizer, or a token of another id than the config's. Oracle: the ids."""
    whole().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=f"(?s){evidence}"):
        load_tokenizer(tmp_path, markers)
