"""Changes to JSON that keep it JSON: what bytes flipped at random hardly ever do."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 255, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", ".", "..", "../x", "/tmp/x", "a/../../x", "a//b", "\0",
    "\x1b[31m", "\ud800", "x" * 300, "1", "{}", [], {}, [[]], [None], [0, 0], {"": None},
    "axcore.json", ".axcore", "config.json", "model.safetensors",
)  # fmt: skip


Scramble = Callable[[bytes, random.Random], bytes]


def mutated(data: bytes, seed: int, scramble: Scramble | None = None) -> bytes:
    """Return a JSON text with one to four changes; other texts lose, gain or change bytes.

    Args:
        data: The text.
        seed: What is changed follows from it.
        scramble: Changes the bytes of a string in it; `scrambled` where nothing is given.
    """
    chance, scramble = random.Random(seed), scramble or scrambled
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return scramble(data, chance)
    holder = [value]
    for _ in range(chance.randint(1, 4)):
        _change(holder, chance, scramble)
    return json.dumps(holder[0] if holder else None).encode()


def _change(holder: list[Any], chance: random.Random, scramble: Scramble) -> None:
    """Change one place of a tree."""
    places = list(_places(holder))
    node, key = chance.choice(places)
    kind, value = chance.randrange(10), node[key]
    if kind == 0:
        node[key] = copy.deepcopy(chance.choice(ODD))
    elif kind == 1 and node is not holder:
        del node[key]
    elif kind == 2:
        other, at = chance.choice(places)
        node[key] = copy.deepcopy(other[at])
    elif kind == 3 and isinstance(node, dict):
        node[str(chance.choice(ODD))] = node.pop(key)
    elif kind == 4 and isinstance(node, list) and node is not holder:
        node[key:key] = [copy.deepcopy(value) for _ in range(chance.choice((1, 2, 9)))]
    elif kind == 5 and isinstance(node, dict):
        node[str(chance.choice(ODD))] = copy.deepcopy(chance.choice(ODD))
    elif isinstance(value, str) and kind == 6:
        node[key] = chance.choice((f"{value}x", value[1:], f"../{value}", f"/{value}", value * 9))
    elif isinstance(value, str):
        node[key] = scramble(value.encode("utf-8", "surrogatepass"), chance).decode(
            "utf-8", "replace"
        )
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        node[key] = chance.choice((value + 1, value - 1, -value, value * 1000, str(value)))
    else:
        node[key] = copy.deepcopy(chance.choice(ODD))


def scrambled(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few of them changed, cut out or doubled."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        start = chance.randrange(len(content) + 1)
        stop = start + chance.choice((0, 1, 1, 2, 4, 8, 64))
        new = (b"", chance.randbytes(1), chance.randbytes(4), bytes(8), b"\xff" * 8)
        content[start:stop] = chance.choice((*new, content[start:stop] * 2))
    return bytes(content)


def _places(holder: Any) -> Any:
    """Yield every place of a tree as its holder and the key or index there."""
    waiting = [holder]
    while waiting:
        node = waiting.pop()
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield node, key
            if isinstance(value, (dict, list)):
                waiting.append(value)
