"""How often two sides give the same answers, and where they diverge."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import CheckpointError, UsageError
from ..language.tokenizer_files import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Tokenize = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Divergence:
    """Where two answers diverge.

    Attributes:
        name: The image.
        position: Index of the first token that differs.
        first, second: That token on each side; empty where the answer has ended.
    """

    name: str
    position: int
    first: str
    second: str


@dataclass(frozen=True)
class Agreement:
    """The agreement over all images.

    Attributes:
        count: Number of images.
        divergences: Of the answers that differ, the earliest divergence first.
    """

    count: int
    divergences: tuple[Divergence, ...]

    @property
    def equal(self) -> int:
        """Number of answers that are equal."""
        return self.count - len(self.divergences)

    @property
    def share(self) -> float:
        """Share of equal answers, 0 to 1."""
        return self.equal / self.count


def words(text: str) -> list[str]:
    """Split a text into words, each with the whitespace before it."""
    return re.findall(r"\s*\S+|\s+\Z", text)


def tokens_of(path: Path) -> Tokenize:
    """Return a function that splits a text into the tokens of a model.

    Args:
        path: ``tokenizer.json``, or the folder that holds it.

    Raises:
        UsageError: It cannot be read as a tokenizer.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = read_tokenizer(file)
    except CheckpointError as error:
        raise UsageError(
            f"{file} cannot be read as a tokenizer\n  {error.message}",
            hint="name a `tokenizer.json` or its folder, or leave it out to compare words",
        ) from error
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).tokens)


def agreement(answers: Mapping[str, tuple[str, ...]], tokenize: Tokenize = words) -> Agreement:
    """Compare the answers of two sides.

    Args:
        answers: Image to the answer of either side, as `match` returns them; not empty.
        tokenize: Splits an answer into tokens. Where it drops the characters that differ, such as
            whitespace, the divergence is at the end.
    """
    found = [
        _divergence(name, tokenize(first), tokenize(second))
        for name, (first, second) in answers.items()
        if first != second
    ]
    return Agreement(len(answers), tuple(sorted(found, key=lambda one: (one.position, one.name))))


def _divergence(name: str, first: Sequence[str], second: Sequence[str]) -> Divergence:
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    position = next((i for i, (one, other) in enumerate(pairs) if one != other), shorter)
    return Divergence(name, position, _at(first, position), _at(second, position))


def _at(tokens: Sequence[str], position: int) -> str:
    return tokens[position] if position < len(tokens) else ""
