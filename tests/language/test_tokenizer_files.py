"""A tokenizer's files may be anything: what the library could hang or fall on is refused."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from axcore import CheckpointError, load_tokenizer
from axcore.language.tokenizer_files import read_tokenizer
from axcore.limits import TOKENIZER_BYTES, VALUES

BASE = json.loads(Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str())
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def replace_step(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split_step(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def added(text: str = "<x>", number: Any = 3, **more: Any) -> dict[str, Any]:
    return {"id": number, "content": text, "special": True, **FLAGS, **more}


def charsmap(trie: int, texts: bytes, size: int | None = None) -> dict[str, Any]:
    content = (trie if size is None else size).to_bytes(4, "little") + bytes(trie) + texts
    table = base64.b64encode(content).decode()
    return {"type": "Precompiled", "precompiled_charsmap": table}


def sequence(name: str, *steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def model(**changed: Any) -> dict[str, Any]:
    return {"model": {**BASE["model"], **changed}}


DOUBLED = replace_step({"String": "a"}, "aa")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([], "the file: .* is not of type dict"),
    "no model": ({}, "model: None"),
    # Text that grows.
    "doubling": (
        {"normalizer": sequence("normalizers", *[DOUBLED] * 30)},
        r"steps of normalizer and pre_tokenizer make up to 1.07e\+09 bytes",
    ),
    "between all": ({"normalizer": replace_step({"Regex": "x*"}, "y" * 900)}, "bytes of one"),
    "nothing replaced": ({"normalizer": replace_step({"String": ""}, "y" * 900)}, "bytes of one"),
    "prepended": (
        {"normalizer": sequence("normalizers", *[{"type": "Prepend", "prepend": "a"}] * 100)},
        "more than 64 steps",
    ),
    "nested": (
        {"normalizer": sequence("normalizers", sequence("normalizers", *[DOUBLED] * 40))},
        "bytes of one",
    ),
    "bytes of bytes": (
        {"pre_tokenizer": sequence("pretokenizers", *[BYTES] * 20)}, "bytes of one"),
    "both sections": (
        {
            "normalizer": replace_step({"String": "a"}, "a" * 30),
            "pre_tokenizer": sequence("pretokenizers", *[BYTES] * 5),
        },
        "bytes of one",
    ),
    "charsmap": ({"normalizer": charsmap(4, b"a" * 999)}, "bytes of one"),
    "charsmap, no trie": ({"normalizer": charsmap(0, b"")}, r"normalizer: .*it has no trie"),
    "charsmap, short": ({"normalizer": charsmap(4, b"", 4000)}, "it has no trie"),
    "charsmap, no text": ({"normalizer": charsmap(4, b"\xff")}, "normalizer: .*utf-8"),
    "charsmap, no base64": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}, "normalizer"),
    "answers": (
        {"decoder": sequence("decoders", *[DOUBLED] * 30)}, "steps of decoder make up to"),
    "template": (
        {
            "post_processor": {
                "type": "TemplateProcessing", "special_tokens": {}, "pair": [],
                "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 99,
            }
        },
        "post_processor: single: more than 16 pieces",
    ),
    # Text that takes for ever.
    "hanging": (
        {"pre_tokenizer": sequence("pretokenizers", BYTES, split_step("(a+)+$"))},
        r"pre_tokenizer\.pretokenizers\[1\]: the pattern '\(a\+\)\+\$': what repeats without end",
    ),
    "hanging replacement": (
        {"normalizer": replace_step({"Regex": "(a|a)*b"}, "")}, "normalizer: the pattern"),
    "hanging decoder": ({"decoder": replace_step({"Regex": "(.*)*b"}, "")}, "decoder: the pattern"),
    "long words": (
        {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a",
                   "continuing_subword_prefix": "##", "max_input_chars_per_word": 10**9}},
        "max_input_chars_per_word",
    ),
    # What falls.
    "no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "length: less than 1"),
    "deep": ({"normalizer": json.loads('{"a":' * 80 + "1" + "}" * 80)}, "nested deeper than"),
    # Wrong types, and what nobody knows.
    "step without type": ({"normalizer": {"prepend": "x"}}, r"normalizer\.type: None is not"),
    "unknown step": ({"decoder": {"type": "Shell"}}, "'Shell' is not a step"),
    "step of a list": ({"normalizer": [1]}, "normalizer: .* is not of type dict"),
    "unknown model": (model(type="Neural"), r"model\.type: 'Neural'"),
    "pattern of both": (
        {"normalizer": replace_step({"Regex": "a", "String": "b"}, "")}, "neither a text nor"),
    # Ids.
    "large id": (model(vocab={"a": 4 * 10**9}), "the id 4000000000 is not below"),
    "negative id": (model(vocab={"a": -1}), "the id -1 is not below"),
    "id of float": (model(vocab={"a": 1.0}), "1.0 is not an id"),
    "id of text": (model(vocab={"a": "1"}), "'1' is not an id"),
    "id of truth": (model(vocab={"a": True}), "True is not an id"),
    "two of an id": (model(vocab={"a": 1, "b": 1}), "1 is the id of two tokens"),
    "long token": (model(vocab={"a" * 9999: 1}), "more than 4096 characters"),
    "added id": ({"added_tokens": [added(number=4 * 10**9)]}, "added_tokens: the id 4000000000"),
    "added float": ({"added_tokens": [added(number=3.0)]}, r"added_tokens\[0\]\.id: 3.0"),
    "added twice": ({"added_tokens": [added(), added("<y>")]}, "3 is the id of two tokens"),
    "two ids": ({"added_tokens": [added(), added(number=4)]}, "has two ids"),
    "added nothing": ({"added_tokens": [added("")]}, "is empty"),
    "added flag": ({"added_tokens": [added(special=1)]}, r"added_tokens\[0\]\.special"),
    "unknown merge": (model(merges=[["a", "z"]]), "cannot be read"),
    # Chance.
    "dropout": (model(dropout=0.5), "model.dropout"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str) -> None:
    """File, path in it, and what is wrong; the library is not asked. Oracle: what was changed."""
    changed, evidence = REFUSED[name]
    content = {**BASE, **changed} if changed else changed
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"(?s){evidence}.*tokenizer.json"):
        load_tokenizer(tmp_path, ())


LLAMA = {
    "normalizer": sequence(
        "normalizers", {"type": "Prepend", "prepend": "▁"}, replace_step({"String": " "}, "▁")
    ),
    "decoder": sequence(
        "decoders", replace_step({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ),
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<x>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {"<x>": {"id": "<x>", "ids": [3], "tokens": ["<x>"]}},
    },
    "added_tokens": [added()],
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 2, MiniCPM-V-2 and -4": LLAMA,
    "Qwen2, InternVL": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": sequence("pretokenizers", split_step(r"\p{L}+|\s+"), BYTES),
        "decoder": BYTES,
        "post_processor": BYTES,
    },
    "Gemma 3": {
        "normalizer": replace_step({"String": " "}, "▁"),
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "added_tokens": [added("\n\n", 4, special=False), added()],
    },
    "DeepSeek-V3": {
        "normalizer": sequence("normalizers"),
        "pre_tokenizer": sequence(
            "pretokenizers", split_step(r"\p{N}{1,3}"), split_step("[一-龥]+"), split_step(r"\s+"),
            BYTES,
        ),
    },
    "sentencepiece": {
        "normalizer": sequence(
            "normalizers", charsmap(1024, b"\0" + "صلى الله عليه وسلم".encode() + b"\0"),
            replace_step({"Regex": " {2,}"}, "▁"),
        ),
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True,
        },
    },
    "BERT": {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"a": 0},
        },
    },
    "GPT-2, whose model has no type": {
        "model": {name: value for name, value in BASE["model"].items() if name != "type"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_structures_of_published_tokenizers_pass(tmp_path: Path, name: str) -> None:
    """Oracle: the ids that the library alone gives."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**BASE, **PUBLISHED[name]}))
    alone = Tokenizer.from_file(str(path))
    made = load_tokenizer(tmp_path, ())
    assert made.to_str() == alone.to_str()
    if "charsmap" not in path.read_text():
        assert made.encode("ab a").ids == alone.encode("ab a").ids


SECTION = '"normalizer": {}, "normalizer": {}'
TWICE = {
    "section": ('"normalizer":null', '"normalizer":{"type":"NFC"},"normalizer":{"type":"NFD"}'),
    "type": ('"normalizer":null', '"normalizer":{"type":"NFC","type":"Lowercase"}'),
    "parts": (
        '"normalizer":null',
        '"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"}],"normalizers":[]}',
    ),
    "pattern": (
        '"pre_tokenizer":null',
        '"pre_tokenizer":{"type":"Split","pattern":{"Regex":"a","Regex":"b"},'
        '"behavior":"Isolated","invert":false}',
    ),
    "decoder": ('"decoder":null', '"decoder":{"type":"Fuse"},"decoder":{"type":"ByteFallback"}'),
    "token": ('"vocab":{"a":0', '"vocab":{"a":7,"a":0'),
    "vocabulary": ('"vocab":{', '"vocab":{"z":4000000000},"vocab":{'),
    "model": (
        '"model":{',
        '"model":{"type":"WordLevel","vocab":{"q":3},"unk_token":"q"},"model":{',
    ),
    "dropout": ('"dropout":null', '"dropout":null,"dropout":0.0'),
}


@pytest.mark.parametrize("name", TWICE)
def test_the_library_reads_what_was_checked(name: str) -> None:
    """Of a key that appears twice, Python and the library both take the last.

    Oracle: the library, given what Python has read.
    """
    text = json.dumps(BASE, separators=(",", ":")).replace(*TWICE[name])
    assert text != json.dumps(BASE, separators=(",", ":"))
    expected = Tokenizer.from_str(json.dumps(json.loads(text)))
    assert Tokenizer.from_str(text).to_str() == expected.to_str()


# Files -------------------------------------------------------------------------------------------


def make_odd(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(TOKENIZER_BYTES + 1)
    elif kind == "values":
        path.write_bytes(b"[" + b"0," * (VALUES + 1) + b"1]")
    elif kind == "nested":
        path.write_bytes(b"[" * 100_000)
    else:
        path.write_bytes(b'{"a": "\xff"}')


ODD = {
    "pipe": "pipe or device",
    "device": "pipe or device",
    "folder": "folder",
    "large": "at most",
    "nested": "nested",
    "values": "values",
    "bytes": "utf-8",
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"],
)
def test_files_that_are_none_are_named(tmp_path: Path, name: str, kind: str) -> None:
    """Without waiting, and without reading what is too large. Oracle: the file and the reason."""
    if name != "tokenizer.json":
        (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
        (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
        (tmp_path / name).unlink(missing_ok=True)
    make_odd(tmp_path / name, kind)
    expected = ODD[kind]
    if kind in ("values", "nested") and name == "merges.txt":
        expected = "is no merge of two tokens"
    with pytest.raises(CheckpointError, match=f"(?s){expected}.*{name}"):
        load_tokenizer(tmp_path, ())


@pytest.mark.parametrize(
    ("name", "content", "evidence"),
    [
        ("added_tokens.json", {"<x>": "3"}, "'3' is not an id"),
        ("added_tokens.json", {"<x>": 3.5}, "3.5 is not an id"),
        ("added_tokens.json", {"<x>": -3}, "the id -3"),
        ("added_tokens.json", {"<x>": 4 * 10**9}, "the id 4000000000"),
        ("added_tokens.json", {"<x>": 3, "<y>": 3}, "3 is the id of two tokens"),
        ("added_tokens.json", {"<x>": 2}, "2 is the id of two tokens"),
        ("added_tokens.json", ["<x>"], "the file: .* is not of type dict"),
        ("tokenizer_config.json", {"pretokenize_regex": "(a+)+$"}, "the pattern"),
        ("tokenizer_config.json", {"pretokenize_regex": 7}, "pretokenize_regex: 7"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": added()}}, r"\[0\]\.id: 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": 7}}, "added_tokens_decoder.3: 7"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder: "),
        ("vocab.json", {"a": 0.5}, "0.5 is not an id"),
        ("merges.txt", "a b c", "'a b c' is no merge"),
        ("merges.txt", "a z", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_of_several_files_is_named(
    tmp_path: Path, name: str, content: Any, evidence: str
) -> None:
    """Oracle: what was changed, and the file."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=evidence) as caught:
        load_tokenizer(tmp_path, ())
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path) -> None:
    """Oracle: a name that the system refuses."""
    with pytest.raises(CheckpointError, match=r"cannot be read\n  File name too long"):
        load_tokenizer(tmp_path / ("x" * 300), ())


def test_a_marker_must_be_an_added_token(tmp_path: Path) -> None:
    """A word of the vocabulary can be typed by everybody. Oracle: the word."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(BASE))
    with pytest.raises(CheckpointError, match="`b` is an ordinary word"):
        load_tokenizer(tmp_path, ["b"])


PANIC = {"type": "Strip", "content": "a", "start": 0, "stop": 5}


def test_a_library_that_panics_is_explained(tmp_path: Path) -> None:
    """A panic is no Exception in Python. Oracle: the kind of the error."""
    from axcore.runtime.text import TextStream

    (tmp_path / "tokenizer.json").write_text(json.dumps({**BASE, "decoder": PANIC}))
    stream = TextStream(load_tokenizer(tmp_path, ()))
    with pytest.raises(CheckpointError, match="cannot decode the answer"):
        stream.push(0)


LIMITED = """
import resource, sys
from pathlib import Path
from tokenizers import Tokenizer
from axcore import AxcoreError, load_tokenizer
resource.setrlimit(resource.RLIMIT_CPU, (15, 15))
before = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss, which counts the process that started this one too.
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_tokenizer(folder, ())
    except AxcoreError:
        continue
    sys.exit(f"{folder.name} was not refused")
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime - before.ru_utime, peak() // 1024)
"""


def test_refusing_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    """All of the above, and the largest file that is read. Oracle: the system's own limits."""
    for name, (changed, _) in REFUSED.items():
        (tmp_path / name).mkdir()
        content = {**BASE, **changed} if changed else changed
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    largest = {
        "text": b'"\xf0\x9f\x98\x80' + b"x" * (TOKENIZER_BYTES - 9) + b'"',
    }
    for name, written in largest.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_bytes(written)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) < 600


def test_a_file_by_itself_can_be_read(tmp_path: Path) -> None:
    """As evaluations do. Oracle: the ids of the library."""
    (tmp_path / "mine.json").write_text(json.dumps(BASE))
    assert read_tokenizer(tmp_path / "mine.json").encode("ab").ids == [2]
