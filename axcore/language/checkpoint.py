"""Write a checkpoint of the language model alone, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from ..checkpoint.assets import TEXT_ASSETS, find_assets
from ..checkpoint.writer import Entry, total_bytes, write_shards
from .embedding import scaled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ..checkpoint import Checkpoint
    from ..language_model import LlmCheckpoint
    from ..progress import Progress


def write_checkpoint(
    source: Checkpoint,
    wanted: LlmCheckpoint,
    folder: Path,
    progress: Progress,
    settings: Iterable[str] = TEXT_ASSETS,
) -> None:
    """Write config, weights and tokenizer of the language model, in chunks.

    Args:
        source: Where the tensors are read from.
        wanted: The config and tensors to write; scaled tensors become float32, others are copied.
        folder: Created; must not exist.
        progress: Where the bytes written are reported.
        settings: Names of further files to copy, of those in `ASSETS`.
    """
    folder.mkdir(parents=True)
    config = json.dumps(wanted.config, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    for name, path in find_assets(source.folder, settings).items():
        shutil.copyfile(path, folder / name)
    write_shards(folder, _entries(source, wanted), progress, "language model")


def checkpoint_bytes(source: Checkpoint, wanted: LlmCheckpoint) -> int:
    """Return the size of the tensors that `write_checkpoint` would write."""
    return total_bytes(_entries(source, wanted))


def _entries(source: Checkpoint, wanted: LlmCheckpoint) -> list[Entry]:
    return [_entry(source, name, *origin) for name, origin in wanted.tensors.items()]


def _entry(source: Checkpoint, name: str, key: str, factor: float) -> Entry:
    info = source.info(key)
    dtype = info.dtype if factor == 1 else "float32"

    def chunks() -> Iterator[memoryview]:
        for chunk in source.chunks(key):
            yield chunk if factor == 1 else scaled(chunk, info.dtype, factor)

    return Entry(name, dtype, info.shape, chunks)
