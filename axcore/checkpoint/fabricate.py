"""Checkpoints of a model's real layout with random weights, to try everything offline."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BudgetError, CheckpointError, ContractError
from ..progress import Progress, Silent, Task
from .keys import disk_key
from .shards import INDEX

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ..types import ModelCard, Shape

MARKER = "fabricated.json"
FORMAT = 1  # raised when the same card, size and seed come to mean other bytes
SHARD_BYTES = 5_000_000_000
SPREAD = 0.02  # the initializer_range of nearly every published config
# Prime, so that rows of a matrix, cut from the pool one after the other, all differ.
POOL_VALUES = 4_194_301


@dataclass(frozen=True)
class _Plan:
    """One shard to be written: file name, and disk key with canonical key and shape of each."""

    name: str
    tensors: Mapping[str, tuple[str, Shape]]


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
    plans = _shards(card, config, shard_bytes)
    settings = {"config.json": config, **card.files}
    marker = _marker(card, size, seed, plans, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _holds(folder, marker):
            partial = folder.with_name(f".{folder.name}.partial")
            _write(partial, plans, settings, seed, progress or Silent(), f"fabricate {card.id}")
            _write_json(partial / MARKER, marker)
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


def _shards(card: ModelCard, config: Mapping[str, Any], shard_bytes: int) -> list[_Plan]:
    """Distribute the tensors over files in their order."""
    if card.tensors is None:
        raise ContractError(
            f"the card of `{card.id}` does not list its tensors, so none can be fabricated",
            hint="use a real checkpoint, or give the card `tensors`",
        )
    groups: list[dict[str, tuple[str, Shape]]] = [{}]
    filled = 0
    for key, shape in card.tensors(config).items():
        if filled and filled + _nbytes(shape) > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][disk_key(key, card.prefixes)] = (key, tuple(shape))
        filled += _nbytes(shape)
    count = len(groups)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    return [_Plan(name, group) for name, group in zip(names, groups, strict=True)]


def _nbytes(shape: Shape) -> int:
    return 2 * math.prod(shape)


def _total_bytes(plans: list[_Plan]) -> int:
    return sum(_nbytes(shape) for plan in plans for _, shape in plan.tensors.values())


def _marker(
    card: ModelCard, size: str, seed: int, plans: list[_Plan], settings: Mapping[str, Any]
) -> dict[str, Any]:
    layout = json.dumps([settings, [[plan.name, plan.tensors] for plan in plans]], sort_keys=True)
    return {
        "card": card.id,
        "size": size,
        "seed": seed,
        "format": FORMAT,
        "layout_sha256": hashlib.sha256(layout.encode()).hexdigest(),
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


def _write(
    folder: Path,
    plans: list[_Plan],
    settings: Mapping[str, Any],
    seed: int,
    progress: Progress,
    label: str,
) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    total = _total_bytes(plans)
    if total > (free := shutil.disk_usage(folder.parent).free):
        raise BudgetError(
            f"{label}: {total / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free\n"
            f"  in: {folder.parent}",
            hint="free some space, or choose a folder on another disk",
        )
    folder.mkdir()
    for name, content in settings.items():
        _write_json(folder / name, content)
    with progress.task(label, total, "B") as task:
        for plan in plans:
            _write_shard(folder / plan.name, plan.tensors, seed, task)
    if len(plans) > 1:
        weight_map = {key: plan.name for plan in plans for key in plan.tensors}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shard(
    path: Path, tensors: Mapping[str, tuple[str, Shape]], seed: int, task: Task
) -> None:
    with path.open("wb") as file:
        file.write(_header(tensors))
        for key, shape in tensors.values():
            for part in _values(key, shape, seed):
                file.write(part)
                task.advance(len(part))


def _header(tensors: Mapping[str, tuple[str, Shape]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (_, shape) in tensors.items():
        begin, end = end, end + _nbytes(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


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
    left = _nbytes(shape)
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
