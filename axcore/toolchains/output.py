"""What a vendor's tool prints: into a log as it is, and in lines to people.

A tool may print anything: bars that redraw themselves, colours, bytes that are no text, gigabytes
without a line break. It is read in pieces, of which a line's length at most is kept.
"""

from __future__ import annotations

import os
import re
import select
import time
from typing import IO, TYPE_CHECKING

from ..limits import LOG_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES = 64 << 10
_LINE_BYTES = 4 << 10
_REDRAWN_EVERY_S = 10.0
_REDRAWS = re.compile(rb"\r(?!\n|\Z)")
# ECMA-48: control sequences, command strings such as a window's title, and short escapes.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")


class Lines:
    """Cuts what a tool prints into lines for people.

    Of a line that redraws itself by carriage returns, the last state counts; while it goes on, one
    in ten seconds is shown. Escape sequences are left out, bytes that are no UTF-8 replaced, and
    long lines cut.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._shown_at = time.monotonic()

    def feed(self, piece: bytes) -> Iterator[str]:
        """Take what was read, and yield the lines that are complete by now."""
        *whole, rest = (self._rest + piece).split(b"\n")
        for line in whole:
            yield from self._shown(line)
        if time.monotonic() - self._shown_at >= _REDRAWN_EVERY_S:
            for state in _REDRAWS.split(rest)[:-1][-1:]:
                yield from self._shown(state)
        self._rest = _REDRAWS.split(rest)[-1][: _LINE_BYTES + 1]

    def end(self) -> Iterator[str]:
        """Yield the last line if nothing ended it."""
        yield from self._shown(self._rest)

    def _shown(self, line: bytes) -> Iterator[str]:
        state = line.rstrip(b"\r").rpartition(b"\r")[2]
        text = state[:_LINE_BYTES].decode(errors="replace")
        if text := without_escapes(text).rstrip():
            self._shown_at = time.monotonic()
            yield text + (" …" if len(state) > _LINE_BYTES else "")


def without_escapes(text: str) -> str:
    """Return text as a terminal would show it, without colours and commands."""
    return _ESCAPES.sub("", text) if "\x1b" in text else text


def lines(output: IO[bytes], log: IO[bytes]) -> Iterator[str]:
    """Yield what is printed, as it comes; the first `LOG_BYTES` of it go into `log`, unchanged."""
    found, room = Lines(), LOG_BYTES
    while piece := os.read(output.fileno(), _PIECE_BYTES):
        log.write(piece[:room])
        log.flush()
        if room and len(piece) >= room:
            log.write(f"\n[the log ends here, after {LOG_BYTES} bytes]\n".encode())
        room = max(room - len(piece), 0)
        yield from found.feed(piece)
    yield from found.end()


def answer(output: IO[bytes], most: int, seconds: float) -> str:
    """Return all that is printed, without escape sequences.

    Raises:
        TimeoutError: It goes on after `seconds`.
        ValueError: It has more than `most` bytes.
    """
    until, said = time.monotonic() + seconds, b""
    waiting = select.poll()
    waiting.register(output, select.POLLIN)
    while True:
        if not waiting.poll(1000 * max(until - time.monotonic(), 0)):
            raise TimeoutError
        if not (piece := os.read(output.fileno(), _PIECE_BYTES)):
            return without_escapes(said.decode(errors="replace"))
        said += piece
        if len(said) > most:
            raise ValueError
