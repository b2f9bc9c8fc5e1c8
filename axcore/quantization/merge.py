"""Merge a quantised language model into the checkpoint that it was extracted from."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

from ..checkpoint.assets import ASSETS, find_assets
from ..checkpoint.quantised import Scheme
from ..checkpoint.writer import Entry, write_json, write_shards
from ..errors import ToolchainError
from ..model_config import TEXT_PARTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ..checkpoint import Checkpoint, TensorInfo
    from ..progress import Progress
    from .language import Language

WEIGHT = ".weight"
REPORT = "quantize_report.json"
_CONFIG = "config.json"
_BESIDE = (".py", ".md")  # code is copied, for whoever trusts it, and never run
_NOT_COPIED = (_CONFIG, "quantize_config.json")


def merge(
    source: Checkpoint,
    quantised: Checkpoint,
    language: Language,
    quantization_config: Mapping[str, Any],
    folder: Path,
    progress: Progress,
) -> None:
    """Write `source` with the matrices of its language model packed, chunk by chunk.

    All other tensors are copied unchanged, and so are the files in `ASSETS`, code and
    descriptions. In ``config.json``, `quantization_config` is added at the top and to the config of
    the language model.

    Args:
        source: The float checkpoint.
        quantised, quantization_config: Model and settings that gptqmodel wrote.
        language: Its names in both.
        folder: Exists; files are added.

    Raises:
        ToolchainError: `quantised` lacks a packed matrix, or has one of another shape.
    """
    scheme = Scheme(quantization_config["bits"], quantization_config["group_size"])
    entries = list(_entries(source, quantised, language, scheme))
    write_shards(folder, entries, progress, "merge")
    beside = (path.name for path in source.folder.iterdir() if path.suffix in _BESIDE)
    for name, path in find_assets(source.folder, {*ASSETS, *beside}).items():
        if name not in _NOT_COPIED:
            shutil.copyfile(path, folder / name)
    write_json(folder / _CONFIG, _marked(source.config, quantization_config))
    write_json(folder / "quantize_config.json", quantization_config)


def _entries(
    source: Checkpoint, quantised: Checkpoint, language: Language, scheme: Scheme
) -> Iterator[Entry]:
    for key, info in source.tensors.items():
        name = language.keys.get(key)
        if name not in language.matrices:
            yield _copy(source, info, info.disk_key)
            continue
        assert name is not None
        stem, disk_stem = name.removesuffix(WEIGHT), info.disk_key.removesuffix(WEIGHT)
        for packed, shape in scheme.tensors(stem, info.shape).items():
            found = quantised.tensors.get(packed)
            if found is None or found.shape != shape:
                raise ToolchainError(
                    f"gptqmodel wrote no `{packed}` of shape {list(shape)}\n"
                    f"  it wrote: {list(found.shape) if found else 'none'}",
                    hint="use gptqmodel 7.6.0",
                )
            yield _copy(quantised, found, disk_stem + packed.removeprefix(stem))


def _copy(checkpoint: Checkpoint, info: TensorInfo, name: str) -> Entry:
    return Entry(name, info.dtype, info.shape, partial(checkpoint.chunks, info.key))


def _marked(config: Mapping[str, Any], quantization_config: Mapping[str, Any]) -> dict[str, Any]:
    marked = {**config, "quantization_config": quantization_config}
    for name in TEXT_PARTS:
        if isinstance(part := config.get(name), dict):
            marked[name] = {**part, "quantization_config": quantization_config}
    return marked
