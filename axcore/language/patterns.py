"""How much work a regular expression can make: those of tokenizers come with checkpoints.

The library that runs them, Oniguruma, tries one way to match after another. `(a+)+b` has more ways
than anyone can wait for, and code that is busy there cannot be interrupted. So a pattern is read
here first, and its ways are counted. All that published tokenizers need is understood; whatever
else Oniguruma knows (back-references, conditions, calls, comments) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..limits import PATTERN_CHARS, PATTERN_PARTS, PATTERN_WAYS
from ..plain import shown

_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(
    r"\?(?:(?P<look><?[=!])|(?P<atomic>>)|(?P<flags>[im]*(?:-[im]+)?)(?P<end>[:)]))"
)
# A property, a code point, a class of characters or an anchor, or a character that is meant.
_ESCAPE = re.compile(
    r"[pP]\{\^?\w+\}|x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|[sSdDwWrntfv]|[^\w\s]|[bBAzZ]"
)
_ANCHORS = frozenset("bBAzZ")


@dataclass(frozen=True)
class _Work:
    """What it costs to match a part of a pattern at one place of a text.

    Attributes:
        first: Ways that are tried until the part matches, or fails: a number, and how often that
            is multiplied by the length of the text.
        all: Ways that are tried if what follows fails each time.
        can_fail: Whether there is a text that it does not match.
        least: Characters that it consumes at least.
        size: Its parts, those that are repeated counted as often.
        letter: The character, if it is nothing but one.
    """

    first: tuple[int, int] = (1, 0)
    all: tuple[int, int] = (1, 0)
    can_fail: bool = True
    least: int = 0
    size: int = 1
    letter: str | None = None


def check_pattern(pattern: str) -> int:
    """Refuse a regular expression with which an ordinary text could take for ever.

    Returns:
        The characters that it matches at least.

    Raises:
        ValueError: It is too long or too much work, or has something that no published tokenizer
            needs.
    """
    if len(pattern) > PATTERN_CHARS:
        raise ValueError(
            f"a pattern has {len(pattern)} characters; at most {PATTERN_CHARS} are used"
        )
    try:
        work = _Reader(pattern).read()
    except ValueError as error:
        raise ValueError(f"the pattern {shown(pattern)}: {error}") from error
    ways, powers = work.first
    if powers > 1 or ways > PATTERN_WAYS or work.size > PATTERN_PARTS:
        raise ValueError(
            f"the pattern {shown(pattern)} can match in too many ways: a text could take for ever"
        )
    return work.least


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at, self._depth = pattern, 0, 0

    def read(self) -> _Work:
        """Return the work of the whole pattern."""
        work = self._alternatives()
        if self._at < len(self._pattern):
            raise ValueError("a `)` is too much")
        return work

    def _alternatives(self) -> _Work:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        if len(branches) == 1:
            return branches[0]
        letters = {branch.letter and branch.letter.casefold() for branch in branches}
        if None not in letters and len(letters) == len(branches):  # as good as `[abc]`
            return _Work(least=1)
        return _Work(
            _sum([branch.first for branch in branches]),
            _sum([branch.all for branch in branches]),
            all(branch.can_fail for branch in branches),
            min(branch.least for branch in branches),
            sum(branch.size for branch in branches),
        )

    def _sequence(self) -> _Work:
        items = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            items.append(self._repeated(self._one()))
        if len(items) == 1:
            return items[0]
        first, followed = (1, 0), False
        for item in reversed(items):
            first = _product(first, item.all if followed else item.first)
            followed = followed or item.can_fail
        every = (1, 0)
        for item in items:
            every = _product(every, item.all)
        least, size = (sum(getattr(item, name) for item in items) for name in ("least", "size"))
        return _Work(first, every, followed, least, max(1, size))

    def _one(self) -> _Work:
        char = self._pattern[self._at]
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            self._characters()
            return _Work(least=1)
        if char == "\\":
            return _Work(least=0 if self._escape() in _ANCHORS else 1)
        if char in "*+?":
            raise ValueError(f"nothing stands before a `{char}`")
        return _Work() if char in "^$" else _Work(least=1, letter=None if char == "." else char)

    def _group(self) -> _Work:
        self._depth += 1
        if self._depth > _DEPTH:
            raise ValueError(f"groups are nested deeper than {_DEPTH}")
        kind = self._kind()
        work = self._alternatives()
        if not self._take(")"):
            raise ValueError("a `)` is missing")
        self._depth -= 1
        if kind == "look":
            return _Work(work.first, work.first, size=work.size)
        return replace(work, all=work.first) if kind == "atomic" else work

    def _kind(self) -> str | None:
        """Read what stands behind `(`; None for a group that does nothing else than group."""
        if not self._pattern.startswith("?", self._at):
            return None
        found = _GROUP.match(self._pattern, self._at)
        if not found or found["end"] == ")":
            raise ValueError(f"`({self._pattern[self._at : self._at + 2]}` is not supported")
        self._at = found.end()
        return "look" if found["look"] else "atomic" if found["atomic"] else None

    def _characters(self) -> None:
        """Read the rest of a class of characters, which may contain others."""
        depth, start = 1, True
        while depth:
            if self._at >= len(self._pattern):
                raise ValueError("a `]` is missing")
            char = self._pattern[self._at]
            self._at += 1
            if char == "\\":
                self._escape()
            elif char == "[":
                depth += 1
                self._take("^")
            elif char == "]":
                if start:
                    raise ValueError("a class of characters is empty")
                depth -= 1
            start = (char == "^" and start) or char == "["

    def _escape(self) -> str:
        found = _ESCAPE.match(self._pattern, self._at)
        if not found:
            raise ValueError(f"`\\{self._pattern[self._at : self._at + 1]}` is not supported")
        self._at = found.end()
        return found[0]

    def _repeated(self, work: _Work) -> _Work:
        while found := _QUANTIFIER.match(self._pattern, self._at):
            self._at = found.end()
            least, most = _bounds(found)
            work = _repeat(work, least, most)
            if found[0] in "*+?":
                if self._take("+"):  # possessive: what it took it never gives back
                    work = replace(work, all=work.first)
                else:
                    self._take("?")
        return work

    def _take(self, char: str) -> bool:
        found = self._pattern.startswith(char, self._at)
        self._at += found
        return found


_DEPTH = 16


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    """Return how often a quantifier repeats, at least and at most."""
    if found[0] in "*+?":
        return int(found[0] == "+"), 1 if found[0] == "?" else None
    low, comma, high = found.groups()
    least = int(low or 0)
    most = int(high) if high else None if comma else least
    if max(least, most or 0) > PATTERN_PARTS or (most is not None and most < least):
        raise ValueError(f"{found[0]} repeats more than {PATTERN_PARTS} times, or less than never")
    return least, most


def _repeat(work: _Work, least: int, most: int | None) -> _Work:
    simple = work.all == (1, 0)
    if most is None:
        if not simple or not work.least:
            raise ValueError(
                "what repeats without end can itself match in several ways, or nothing"
            )
        every = (1, 1)
    elif most <= 1:
        every = (work.all[0] + (least < most), work.all[1])
    elif simple:
        every = (most - least + 1, 0)
    elif work.all[1] == 0:
        every = (min((work.all[0] + 1) ** most, _MANY), 0)
    else:
        raise ValueError("a repetition without end is itself repeated")
    first = work.first if simple or most == 1 else every
    size = min(work.size * max(least, most or 1), _MANY)
    return _Work(first, every, least > 0 and work.can_fail, work.least * least, size)


_MANY = 1 << 32  # more than any limit, so that numbers stay small


def _product(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return min(one[0] * other[0], _MANY), one[1] + other[1]


def _sum(works: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(ways for ways, _ in works), max(powers for _, powers in works)
