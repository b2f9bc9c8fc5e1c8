"""Write safetensors shards from streams, so that no whole tensor is in memory.

safetensors itself serialises only tensors that are in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .headers import DTYPES
from .shards import INDEX

if TYPE_CHECKING:
    from pathlib import Path

    from ..component import Shape
    from ..progress import Progress, Task

SHARD_BYTES = 5_000_000_000
_WRITERS = 2  # shards at a time: one reads and computes while the other writes
_SPELLINGS = {name: (spelling, width) for spelling, (name, width) in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        name: Its key on disk.
        dtype: E.g. "bfloat16".
        shape: Its shape.
        chunks: Yields its bytes, little-endian and row-major; called in any thread.
    """

    name: str
    dtype: str
    shape: Shape
    chunks: Callable[[], Iterable[memoryview]]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * _SPELLINGS[self.dtype][1]


def total_bytes(entries: Iterable[Entry]) -> int:
    """Return the bytes of all tensors."""
    return sum(entry.nbytes for entry in entries)


def write_shards(
    folder: Path,
    entries: Sequence[Entry],
    progress: Progress,
    label: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors, in their order, into one file or into several with an index.

    A file has at most `shard_bytes` of data, unless a single tensor has more.
    """
    groups = _groups(entries, shard_bytes)
    count, total = len(groups), total_bytes(entries)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    with progress.task(label, total, "B") as task, ThreadPoolExecutor(_WRITERS) as pool:
        paths = [folder / name for name in names]
        for _ in pool.map(partial(_write_shard, task), paths, groups):
            pass
    if count > 1:
        weight_map = {e.name: name for name, g in zip(names, groups, strict=True) for e in g}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_shard(task: Task, path: Path, entries: Iterable[Entry]) -> None:
    with path.open("wb") as file:
        file.write(_header(entries))
        for entry in entries:
            for chunk in entry.chunks():
                file.write(chunk)
                task.advance(len(chunk))


def write_json(path: Path, content: Any) -> None:
    """Write `content` formatted like the JSON files of hub repositories."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _groups(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if filled and filled + entry.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.nbytes
    return groups


def _header(entries: Iterable[Entry]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        spelling = _SPELLINGS[entry.dtype][0]
        header[entry.name] = {
            "dtype": spelling, "shape": entry.shape, "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text
