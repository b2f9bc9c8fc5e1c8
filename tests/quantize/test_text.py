"""Text for calibration is read, cut into documents and divided."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axcore.errors import UsageError
from axcore.quantization.text import DEFAULT, read_text

if TYPE_CHECKING:
    from pathlib import Path

LONG = "A sentence that is long enough to count. " * 30


def test_the_default_text_holds_out_some_of_every_kind() -> None:
    """Oracle: the files themselves; a document held out is in none used for calibration."""
    text = read_text(None)
    assert len(text.calibration) == 50
    assert not set(text.calibration) & set(text.held_out)
    for path in DEFAULT.iterdir():
        assert any(document in path.read_text() for document in text.held_out)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(words=st.lists(st.text("ab \u00e9\u4e2d\n", min_size=1), min_size=6, max_size=30))
def test_no_document_is_lost_or_used_twice(tmp_path: Path, words: list[str]) -> None:
    """Whatever the documents hold. Oracle: the lines written; one that is blank is none."""
    documents = [f"{i} {word} {LONG}" for i, word in enumerate(words)]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    text = read_text(path)
    whole = sorted(document.strip("\n") for document in documents)
    assert sorted(text.calibration + text.held_out) == whole
    assert len(text.held_out) == len(documents) // 6


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Plain text is cut at empty lines, also those that hold blanks. Oracle: what was written."""
    (tmp_path / "b.txt").write_text(f"three {LONG}\n  \nfour {LONG}\n\n\n\n five {LONG}\n")
    (tmp_path / "a.md").write_text(f"one {LONG}\nsame\n\ntwo {LONG}")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "six " + LONG}) + "\n")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    text = read_text(tmp_path)
    firsts = [document.split()[0] for document in text.calibration]
    assert firsts == ["one", "two", "three", "four", "five"]
    assert "same" in text.calibration[0]
    assert text.held_out[0].startswith("six ")


@pytest.mark.parametrize(
    ("name", "content", "evidence"),
    [
        ("a.txt", b"short", "5 characters in 1 documents"),
        ("a.txt", LONG.encode() * 9, "in 1 documents"),
        ("a.txt", b"\xff\xfe", "cannot read"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "line 2, is not a JSON object with a `text`"),
        ("a.jsonl", b"[]", "line 1, is not a JSON object"),
        ("a.jsonl", b'{"text": 3}', "line 1, is not a JSON object"),
    ],
)
def test_unfit_text_is_refused(tmp_path: Path, name: str, content: bytes, evidence: str) -> None:
    """Too little, not UTF-8, other JSON. Oracle: the content given."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_text(path)
    assert evidence in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_place_without_text_is_refused(tmp_path: Path) -> None:
    """A folder of other files, and no file at all. Oracle: the folder made."""
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="no text in"):
        read_text(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        read_text(tmp_path / "missing")


def test_text_is_bounded_over_all_files(tmp_path: Path) -> None:
    """A pipe was waited for for ever; many files count together. Oracle: the limit."""
    for number in range(2):
        (tmp_path / f"{number}.txt").touch()
        os.truncate(tmp_path / f"{number}.txt", 9 << 20)
    with pytest.raises(UsageError, match=r"1\.txt: it has 9437184 bytes; at most 7340032"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="a pipe or device"):
        read_text(tmp_path / "pipe")
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 1"):
        read_text(tmp_path / "a.jsonl")
