"""safetensors headers, validated by safetensors before anything in them is trusted."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import CheckpointError
from ..foreign import decode_json, open_regular, reason
from ..limits import HEADER_BYTES, NAME_LENGTH, RANK, TENSORS
from ..plain import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import IO

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
        version: Inode, and the times of its last modification and of its last change in any
            respect, in ns. Unlike the former, the latter cannot be set.
        header_sha256: Digest of the header bytes, in hex.
        tensors: Key in the file to tensor, in the order of the data.
    """

    path: Path
    nbytes: int
    version: tuple[int, int, int]
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
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            raw = _header(path, file, status.st_size)
            # Before safetensors, which takes long for many dimensions.
            _check_entries(decode_json(raw, unique=True))
            # The file is mapped for a moment, but only the pages of its header are touched.
            with safe_open(path, "numpy") as opened:
                tensors = _tensors(path, opened, 8 + len(raw))
    except SafetensorError as error:
        _refuse(path, f"is not a valid safetensors file: {error}\n  size: {status.st_size} bytes")
    except ValueError as error:
        _refuse(path, f"is not a valid safetensors file: {error}")
    except OSError as error:
        raise CheckpointError(
            f"`{path.name}` cannot be read: {reason(error)}\n  file: {path}",
            hint="check the file's permissions and the disk",
        ) from error
    digest = hashlib.sha256(raw).hexdigest()
    version = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return Shard(path, status.st_size, version, digest, tensors)


def check_names(names: Iterable[str]) -> None:
    """Refuse names of tensors that could not be shown, or that are too many.

    Raises:
        ValueError: A name is long, or has characters that cannot be printed.
    """
    for count, name in enumerate(names):
        if count == TENSORS:
            raise ValueError(f"it names more than {TENSORS} tensors")
        if len(name) > NAME_LENGTH or not name.isprintable():
            raise ValueError(f"{shown(name)} is not the name of a tensor")


def _header(path: Path, file: IO[bytes], size: int) -> bytes:
    prefix = file.read(8)
    if prefix == b"version ":
        _refuse(path, "is a Git LFS pointer, not the weights", "run `git lfs pull` there")
    length = int.from_bytes(prefix, "little")
    if length > min(HEADER_BYTES, size - 8):
        raise ValueError(
            f"its header has {length} bytes; the file has {size}, and at most {HEADER_BYTES} of a"
            " header are read"
        )
    header = file.read(length)
    if header.count(b'"data_offsets"') > TENSORS:
        raise ValueError(f"it names more than {TENSORS} tensors")
    return header


def _check_entries(header: Any) -> None:
    """Bound what safetensors is given; whether it is valid, safetensors says."""
    if not isinstance(header, dict):
        return
    check_names(header)
    for name, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and len(shape) > RANK:
            raise ValueError(f"{shown(name)} has {len(shape)} dimensions; at most {RANK} are read")


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
