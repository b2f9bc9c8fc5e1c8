"""safetensors headers, validated by safetensors before anything in them is trusted."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ..component import Shape

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
"""The format's name to the one of numpy, ml_dtypes and torch, and bytes per element."""

DAMAGED = "fetch the file again: it is damaged or incomplete"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is stored; its data has not been read.

    Attributes:
        key: Canonical key.
        disk_key: Key in the file.
        dtype: numpy's spelling, e.g. "float32", "bfloat16".
        shape: Static shape.
        file: The shard.
        offset: Its first byte, counted from the start of the file.
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
    """A safetensors file with a valid header.

    Attributes:
        path: The file.
        nbytes: Its size.
        mtime_ns: Its modification time.
        header_sha256: Digest of the header bytes, in hex.
        tensors: Key in the file to tensor, in the order of the data.
    """

    path: Path
    nbytes: int
    mtime_ns: int
    header_sha256: str
    tensors: Mapping[str, TensorInfo]


def read_shard(path: Path) -> Shard:
    """Read and validate the header of a safetensors file; no tensor is read.

    Raises:
        CheckpointError: The file cannot be read, safetensors refuses it (it is truncated, or its
            header contradicts itself), a key appears twice, or a dtype is not among `DTYPES`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            prefix = file.read(8)
            if prefix == b"version ":
                _refuse(path, "is a Git LFS pointer, not the weights", "run `git lfs pull` there")
            # The file is mapped for a moment, but only the pages of its header are touched.
            with safe_open(path, "numpy") as opened:
                raw = file.read(int.from_bytes(prefix, "little"))
                tensors = _tensors(path, opened, 8 + len(raw))
            # safetensors takes the last of several entries of one name; the format forbids them.
            json.loads(raw, object_pairs_hook=unique_object)
    except (SafetensorError, ValueError) as error:
        _refuse(path, f"is not a valid safetensors file: {error}\n  size: {status.st_size} bytes")
    except OSError as error:
        raise CheckpointError(
            f"`{path.name}` cannot be read: {error.strerror or error}\n  file: {path}",
            hint="check the file's permissions and the disk",
        ) from error
    digest = hashlib.sha256(raw).hexdigest()
    return Shard(path, status.st_size, status.st_mtime_ns, digest, tensors)


def unique_object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, for `json.loads` as ``object_pairs_hook``.

    Raises:
        ValueError: A key appears twice, or is not valid Unicode.
    """
    result: dict[str, Any] = {}
    for key, value in pairs:
        key.encode()
        if key in result:
            raise ValueError(f"`{key}` appears twice")
        result[key] = value
    return result


def _tensors(path: Path, opened: Any, offset: int) -> dict[str, TensorInfo]:
    """Return the tensors of a validated file: without gaps, the first one at `offset`."""
    tensors = {}
    for key in opened.offset_keys():
        header = opened.get_slice(key)
        spelling, shape = header.get_dtype(), tuple(header.get_shape())
        if spelling not in DTYPES:
            _refuse(
                path,
                f"stores `{key}` as {spelling}, which is not supported",
                f"use a checkpoint in one of {', '.join(DTYPES)}",
            )
        dtype, width = DTYPES[spelling]
        nbytes = math.prod(shape) * width
        tensors[key] = TensorInfo(key, key, dtype, shape, path, offset, nbytes)
        offset += nbytes
    return tensors


def _refuse(path: Path, fact: str, hint: str = DAMAGED) -> NoReturn:
    raise CheckpointError(f"`{path.name}` {fact}\n  file: {path}", hint=hint)
