"""Text for calibration, and held-out text to measure the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..foreign import decode_json, read_bytes, reason
from ..limits import TEXT_BYTES
from ..plain import shown

DEFAULT = Path(__file__).parent.parent / "data" / "calibration_text"
SUFFIXES = (".txt", ".md", ".jsonl")
HELD_OUT_EVERY = 6
MIN_DOCUMENTS = HELD_OUT_EVERY
MIN_CHARACTERS = 5000
"""About a thousand tokens; with fewer, the inputs of a layer cannot be told apart."""


@dataclass(frozen=True)
class Text:
    """Documents for calibration, and held-out ones of the same kind to measure the result."""

    calibration: tuple[str, ...]
    held_out: tuple[str, ...]


def read_text(source: Path | None) -> Text:
    """Read documents, and hold out every sixth.

    Args:
        source: A file, or a folder whose ``*.txt``, ``*.md`` and ``*.jsonl`` are read in the
            order of their names. In JSONL, the field ``text`` of a line is a document; in other
            files, empty lines separate documents. None reads a small text that comes with axcore.

    Raises:
        UsageError: The text cannot be read, or is too short.
    """
    place = source or DEFAULT
    documents, left = [], TEXT_BYTES
    for path in _files(place):
        content = _content(path, left)
        left -= len(content)
        documents += _documents(path, content)
    characters = sum(map(len, documents))
    if len(documents) < MIN_DOCUMENTS or characters < MIN_CHARACTERS:
        raise UsageError(
            f"too little text: {characters} characters in {len(documents)} documents\n"
            f"  read from: {place}\n"
            f"  needed: {MIN_CHARACTERS} characters in {MIN_DOCUMENTS} documents, at least",
            hint="give more with --text, preferably 100,000 characters or more",
        )
    held_out = documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    rest = [text for i, text in enumerate(documents, 1) if i % HELD_OUT_EVERY]
    return Text(tuple(rest), tuple(held_out))


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES)
    if not found:
        raise UsageError(
            f"no text in {place}", hint=f"name a file, or a folder with {', '.join(SUFFIXES)}"
        )
    return found


def _content(path: Path, left: int) -> bytes:
    try:
        return read_bytes(path, left)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path}: {reason(error)}",
            hint=f"give at most {TEXT_BYTES >> 20} MiB of text, in files or a folder, with --text",
        ) from error


def _documents(path: Path, content: bytes) -> list[str]:
    try:
        text = content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: {error}", hint="give UTF-8 text") from error
    if path.suffix == ".jsonl":
        found = [_of_line(path, i, line) for i, line in enumerate(text.split("\n"), 1) if line]
    else:
        found = "\n".join(line.rstrip() for line in text.splitlines()).split("\n\n")
    return [document.strip("\n") for document in found if document.strip()]


def _of_line(path: Path, number: int, line: str) -> str:
    try:
        document = decode_json(line)["text"]
        document.encode()  # half of a surrogate pair is no text
    except (ValueError, KeyError, TypeError, AttributeError):
        document = None
    if not isinstance(document, str):
        raise UsageError(
            f"{path}, line {number}, is not a JSON object with a `text`\n  it is: {shown(line)}",
            hint='write one object a line: {"text": "..."}',
        )
    return document
