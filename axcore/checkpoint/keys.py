"""Canonical keys: one spelling where key prefixes vary between checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

Prefixes = Mapping[str, tuple[str, ...]]
"""Canonical prefix to its spellings on disk."""


def canonical_key(disk_key: str, prefixes: Prefixes) -> str:
    """Return the canonical key of a tensor on disk; the longest matching spelling wins.

    >>> prefixes = {"visual.": ("visual.", "model.visual."), "model.": ("model.",)}
    >>> canonical_key("model.visual.x", prefixes)
    'visual.x'
    """
    spellings = [(spelling, name) for name, known in prefixes.items() for spelling in known]
    matches = [pair for pair in spellings if disk_key.startswith(pair[0])]
    if not matches:
        return disk_key
    spelling, name = max(matches, key=lambda pair: len(pair[0]))
    return name + disk_key[len(spelling) :]


def disk_key(key: str, prefixes: Prefixes) -> str:
    """Return the first spelling on disk of a canonical key; the longest matching prefix wins."""
    matches = [name for name, known in prefixes.items() if known and key.startswith(name)]
    if not matches:
        return key
    name = max(matches, key=len)
    return prefixes[name][0] + key[len(name) :]
