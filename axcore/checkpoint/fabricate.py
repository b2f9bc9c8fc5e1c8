"""Checkpoints of a model's real layout with random weights, to try everything offline."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BudgetError, CheckpointError, ContractError
from ..progress import Progress, Silent
from .keys import disk_key
from .writer import SHARD_BYTES, Entry, total_bytes, write_json, write_shards

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ..types import ModelCard, Shape

MARKER = "fabricated.json"
FORMAT = 1  # raised when the same card, size and seed come to mean other bytes
SPREAD = 0.02  # the initializer_range of nearly every published config
# Prime, so that rows of a matrix, cut from the pool one after the other, all differ.
POOL_VALUES = 4_194_301


def fabricate(
    card: ModelCard,
    size: Literal["tiny", "full"],
    folder: Path,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a checkpoint of the card's layout with seeded random bfloat16 weights.

    ``config.json`` is the card's, with its tiny overrides laid over it for "tiny"; a key is
    spelt by the first of its prefix's spellings in ``card.prefixes``. Matrices are normal with
    standard deviation 0.02, one-dimensional weights (norms) lie near 1 and biases near 0. A
    tensor depends on seed, canonical key and shape alone.

    The folder appears whole or not at all, is kept when it already holds the same, and replaced
    when it holds another fabricated checkpoint. Peak memory is some 100 MB, whatever the size.

    Args:
        card: The model; must have `tensors`.
        size: Published dimensions, or those that convert in seconds.
        folder: Where to; its parent is created.
        seed: Any integer.
        progress: Gets the bytes written.
        shard_bytes: Most bytes of data in one file, unless a tensor alone has more.

    Returns:
        `folder`.

    Raises:
        ContractError: The card says nothing of its tensors.
        CheckpointError: `folder` holds something that was not fabricated.
        BudgetError: The disk has too little room.
    """
    from filelock import FileLock

    config = _merge(card.config, card.tiny) if size == "tiny" else dict(card.config)
    entries = _entries(card, config, seed)
    settings = {"config.json": config, **card.files}
    marker = _marker(card, size, seed, entries, shard_bytes, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _holds(folder, marker):
            partial = folder.with_name(f".{folder.name}.partial")
            label = f"fabricate {card.id}"
            _make_room(partial, total_bytes(entries), label)
            for name, content in settings.items():
                write_json(partial / name, content)
            write_shards(partial, entries, progress or Silent(), label, shard_bytes)
            write_json(partial / MARKER, marker)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
    return folder


# What is written ---------------------------------------------------------------------------------


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested overrides over a config."""
    merged = dict(base)
    for name, value in overrides.items():
        under = merged.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _merge(under, value)
        merged[name] = value
    return merged


def _entries(card: ModelCard, config: Mapping[str, Any], seed: int) -> list[Entry]:
    if card.tensors is None:
        raise ContractError(
            f"the card of `{card.id}` does not list its tensors, so none can be fabricated",
            hint="use a real checkpoint, or give the card `tensors`",
        )
    return [
        Entry(
            disk_key(key, card.prefixes),
            "bfloat16",
            tuple(shape),
            functools.partial(_values, key, tuple(shape), seed),
        )
        for key, shape in card.tensors(config).items()
    ]


def _marker(
    card: ModelCard,
    size: str,
    seed: int,
    entries: Sequence[Entry],
    shard_bytes: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    layout = [settings, shard_bytes, [[entry.name, entry.shape] for entry in entries]]
    return {
        "card": card.id,
        "size": size,
        "seed": seed,
        "format": FORMAT,
        "layout_sha256": hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest(),
    }


# Where it is written -----------------------------------------------------------------------------


def _holds(folder: Path, marker: Mapping[str, Any]) -> bool:
    """Say whether the work is done; refuse a folder that holds anything else than our own."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    path = folder / MARKER
    if not path.is_file():
        raise CheckpointError(
            f"the folder for a fabricated checkpoint holds something else\n  folder: {folder}",
            hint="choose another folder; only what was fabricated is ever replaced",
        )
    try:
        return bool(json.loads(path.read_bytes()) == marker)
    except ValueError:
        return False


def _make_room(folder: Path, total: int, label: str) -> None:
    """Make an empty folder on a disk that can hold what comes."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    if total > (free := shutil.disk_usage(folder.parent).free):
        raise BudgetError(
            f"{label}: {total / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free\n"
            f"  in: {folder.parent}",
            hint="free some space, or choose a folder on another disk",
        )
    folder.mkdir()


# Values ------------------------------------------------------------------------------------------


def _values(key: str, shape: Shape, seed: int) -> Iterator[memoryview]:
    """Yield a tensor's bytes: one-dimensional ones drawn anew, matrices cut from the pool."""
    identity = hashlib.sha256(json.dumps([seed, key, shape]).encode()).digest()
    if len(shape) == 1:
        centre = 1.0 if key.endswith("weight") else 0.0
        yield _normal(int.from_bytes(identity[:4], "little"), shape[0], centre)
        return
    pool = _pool()
    position = 2 * (int.from_bytes(identity[:8], "little") % POOL_VALUES)
    left = 2 * math.prod(shape)
    while left:
        part = pool[position : position + left]
        yield part
        left -= len(part)
        position = 0


@functools.cache
def _pool() -> memoryview:
    return _normal(0, POOL_VALUES, 0.0)


def _normal(seed: int, count: int, centre: float) -> memoryview:
    """Return `count` normal values in bfloat16, as bytes."""
    import ml_dtypes
    import numpy as np

    # The legacy generator: its stream never changes, those of the newer ones may.
    values: np.ndarray[Any, Any] = np.random.RandomState(seed).standard_normal(count)
    values *= SPREAD
    values += centre
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint8).data
