"""safetensors headers: read and validated before anything in them is trusted."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from ..errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ..component import Shape

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_ELEMENTS = 1 << 56  # so that counts of bits stay below 64 bits, as safetensors demands
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}

DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
"""The format's name to ours (numpy's, ml_dtypes' and torch's spelling) and bytes per element."""

DAMAGED = "fetch the file again: it is damaged or was not written to its end"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies; nothing of it has been read.

    Attributes:
        key: Canonical key.
        disk_key: Key in the file.
        dtype: numpy's spelling, e.g. "float32", "bfloat16".
        shape: Static shape.
        file: The shard.
        offset: First byte, counted from the start of the file.
        nbytes: Number of bytes.
    """

    key: str
    disk_key: str
    dtype: str
    shape: Shape
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """A safetensors file whose header holds together.

    Attributes:
        path: The file.
        nbytes: Its size.
        mtime_ns: Its modification time.
        header_sha256: Digest of the header bytes, in hex.
        tensors: Disk key to place, in the order of the data.
    """

    path: Path
    nbytes: int
    mtime_ns: int
    header_sha256: str
    tensors: Mapping[str, TensorInfo]


def read_shard(path: Path) -> Shard:
    """Read and validate the header of a safetensors file.

    Raises:
        CheckpointError: The file cannot be read, is no safetensors file, is truncated or
            oversized, or its header contradicts itself.

    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            raw = _read_header(file, path, status.st_size)
    except OSError as error:
        raise CheckpointError(
            f"`{path.name}` cannot be read: {error.strerror}\n  file: {path}",
            hint="check the file's permissions and the disk",
        ) from error
    data_start = 8 + len(raw)
    places = [
        _place(path, key, entry, data_start)
        for key, entry in _parse(path, raw).items()
        if key != METADATA
    ]
    places.sort(key=lambda info: (info.offset, info.nbytes))
    _check_tiling(path, places, data_start, status.st_size)
    digest = hashlib.sha256(raw).hexdigest()
    tensors = {info.disk_key: info for info in places}
    return Shard(path, status.st_size, status.st_mtime_ns, digest, tensors)


def unique_object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, for `json.loads` as ``object_pairs_hook``.

    Raises:
        ValueError: A key appears twice, or is no valid Unicode text.
    """
    result: dict[str, Any] = {}
    for key, value in pairs:
        key.encode()
        if key in result:
            raise ValueError(f"`{key}` appears twice")
        result[key] = value
    return result


def _read_header(file: BinaryIO, path: Path, size: int) -> bytes:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if prefix == b"version ":
        _refuse(path, "is a Git LFS pointer, not the weights", hint="run `git lfs pull` there")
    if len(prefix) < 8:
        _refuse(path, f"is no safetensors file: it has {size} bytes")
    if length > min(MAX_HEADER_BYTES, size - 8):
        _refuse(path, f"announces a header of {length} bytes in a file of {size} bytes")
    return file.read(length)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique_object,
            parse_int=_natural,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        _refuse(path, f"has a header that is no valid JSON: {error}")
    if not isinstance(header, dict):
        _refuse(path, f"has a header that is no JSON object but {type(header).__name__}")
    _check_metadata(path, header.get(METADATA, {}))
    return header


def _natural(text: str) -> int:
    if text.startswith("-"):
        raise ValueError(f"the number {text} is negative")
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _check_metadata(path: Path, metadata: Any) -> None:
    entries = metadata.values() if isinstance(metadata, dict) else [metadata]
    if not all(isinstance(value, str) and _is_unicode(value) for value in entries):
        _refuse(path, f"has a `{METADATA}` that does not map text to text")


def _is_unicode(text: str) -> bool:
    # JSON escapes can spell half of a surrogate pair, which Python reads and UTF-8 cannot hold.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _place(path: Path, key: str, entry: Any, data_start: int) -> TensorInfo:
    """Turn one header entry into a place, checking it alone."""
    if not isinstance(entry, dict) or set(entry) != FIELDS:
        _refuse(path, f"describes `{key}` by {_brief(entry)} instead of {sorted(FIELDS)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_integers(shape) or not _are_integers(offsets) or len(offsets) != 2:
        _refuse(path, f"gives `{key}` shape {_brief(shape)} at offsets {_brief(offsets)}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        _refuse(
            path,
            f"gives `{key}` the unknown dtype {_brief(entry['dtype'])}",
            hint=f"use a checkpoint in one of {', '.join(DTYPES)}",
        )
    dtype, item_bytes = DTYPES[entry["dtype"]]
    begin, end = offsets
    # Zero does not excuse the other dimensions: readers multiply in 64 bits from the left.
    if math.prod(filter(None, shape)) > MAX_ELEMENTS:
        _refuse(path, f"gives `{key}` the absurd shape {_brief(shape)}")
    nbytes = math.prod(shape) * item_bytes
    if end - begin != nbytes:
        _refuse(
            path,
            f"gives `{key}` offsets {begin} to {end}, {end - begin} bytes, "
            f"while {dtype} {shape} takes {nbytes} bytes",
        )
    return TensorInfo(key, key, dtype, tuple(shape), path, data_start + begin, nbytes)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _check_tiling(path: Path, places: list[TensorInfo], data_start: int, size: int) -> None:
    """Check that the tensors, sorted by offset, cover the file without overlap or hole."""
    position, before = data_start, "the header"
    for info in places:
        if info.offset < position:
            _refuse(path, f"lets {before} and `{info.disk_key}` overlap at byte {info.offset}")
        if info.offset > position:
            hole = info.offset - position
            _refuse(path, f"has a hole of {hole} bytes between {before} and `{info.disk_key}`")
        position, before = info.offset + info.nbytes, f"`{info.disk_key}`"
    if size != position:
        state = "truncated" if size < position else "oversized"
        _refuse(path, f"is {state}: it has {size} bytes, its header describes {position}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(path: Path, fact: str, hint: str = DAMAGED) -> NoReturn:
    raise CheckpointError(f"`{path.name}` {fact}\n  file: {path}", hint=hint)
