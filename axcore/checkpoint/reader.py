"""Open a Hugging Face checkpoint folder: config, and tensors that are read on demand."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..files import write_at
from ..foreign import reason
from ..system import require_linux
from .config import read_config
from .finite import Finite, refuse_others
from .headers import DAMAGED, Shard, TensorInfo, read_shard
from .keys import Prefixes, canonical_key
from .shards import INDEX, read_index, sole_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from torch import Tensor

CHUNK_BYTES = 512 << 10  # stays in the second-level cache between reading and writing
HASHING_THREADS = 2
_PIECE_BYTES = 4096
AS_ON_DISK: Prefixes = MappingProxyType({})


class Checkpoint:
    """Config and tensors of a checkpoint folder, the tensors under canonical keys.

    Tensors are read by position, not mapped, so they take memory only while a caller holds them.
    Methods that read raise CheckpointError where there is no such tensor, or its file can no longer
    be read. All methods are thread-safe.

    Attributes:
        folder: The checkpoint's folder.
        config: The content of ``config.json``. Code that it names is not executed.
        tensors: Canonical key to dtype, shape and place in a file.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        shards: Iterable[Shard],
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = MappingProxyType(dict(tensors))
        self._shards = tuple(shards)
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: Path,
        prefixes: Prefixes = AS_ON_DISK,
        only: Callable[[str], bool] | None = None,
    ) -> Checkpoint:
        """Read ``config.json``, the index and the headers, but no tensor.

        Args:
            folder: A folder in the layout that ``save_pretrained`` writes.
            prefixes: Canonical key prefix to its spellings on disk.
            only: Whether the tensor of a canonical key is needed. Other tensors are not listed,
                and shards without a needed tensor may be missing.

        Raises:
            CheckpointError: A file is missing or damaged, or files contradict each other.
            AxcoreError: The system is not Linux.
        """
        require_linux()
        config = read_config(folder)
        wanted = only or (lambda _: True)
        shards = [
            _open_shard(folder / name, keys)
            for name, keys in _shard_keys(folder).items()
            if keys is None or any(wanted(canonical_key(key, prefixes)) for key in keys)
        ]
        tensors = {key: info for key, info in _canonical(shards, prefixes).items() if wanted(key)}
        return cls(folder, config, shards, tensors)

    def info(self, key: str) -> TensorInfo:
        """Return dtype, shape and place of a tensor.

        Raises:
            CheckpointError: There is no tensor of this name (the message lists similar ones).
        """
        if key not in self.tensors:
            near = difflib.get_close_matches(key, self.tensors, n=3)
            raise CheckpointError(
                f"no tensor `{key}` among the {len(self.tensors)} of {self.folder}\n"
                f"  nearest: {', '.join(near) or 'none'}",
                hint="check that the checkpoint belongs to the chosen model",
            )
        return self.tensors[key]

    def chunks(self, key: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """Yield a tensor's bytes in order, at most `chunk_bytes` at a time.

        All chunks share one buffer: use each before requesting the next.
        """
        info = self.info(key)
        buffer = memoryview(bytearray(min(chunk_bytes, info.nbytes)))
        for start in range(0, info.nbytes, chunk_bytes):
            part = buffer[: info.nbytes - start]
            self._read(info, start, part)
            yield part

    def copy(self, key: str, descriptor: int, offset: int) -> None:
        """Copy a tensor's bytes to `offset` of an open file, inside the kernel where possible."""
        info = self.info(key)
        done = 0
        # Not all file systems and operating systems can.
        with contextlib.suppress(OSError, AttributeError):
            source = self._descriptor(info.file)
            while done < info.nbytes:
                left, start = info.nbytes - done, info.offset + done
                count = os.copy_file_range(source, descriptor, left, start, offset + done)
                if count == 0:
                    break
                done += count
        if done < info.nbytes:
            for chunk in self.chunks(key):
                write_at(descriptor, chunk, offset)
                offset += len(chunk)

    def array(self, key: str) -> np.ndarray[Any, Any]:
        """Read a tensor as a numpy array; bfloat16 and float8 take the dtypes of ml_dtypes."""
        import ml_dtypes
        import numpy as np

        info = self.info(key)
        raw = np.empty(info.nbytes, np.uint8)
        self._read(info, 0, raw.data)
        return raw.view(np.dtype(getattr(ml_dtypes, info.dtype, info.dtype))).reshape(info.shape)

    def tensor(self, key: str) -> Tensor:
        """Read a tensor as a torch tensor in fresh memory, in the dtype of the file."""
        import torch

        info = self.info(key)
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        self._read(info, 0, raw.numpy().data)
        return raw.view(getattr(torch, info.dtype)).reshape(info.shape)

    def signature(self) -> str:
        """Return an identity of the opened shards, without reading tensors.

        SHA-256, in hex, of their names, sizes, headers, inodes and times, but not of the folder's
        path. It changes whenever a file is written or replaced, and may change without that.
        """
        facts = [
            (shard.path.name, shard.nbytes, shard.version, shard.header_sha256)
            for shard in sorted(self._shards, key=lambda shard: shard.path.name)
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def fingerprint(self) -> str:
        """Return an identity of the weights that copies of the files share.

        SHA-256, in hex, of canonical key, dtype and shape of every tensor and some bytes from its
        middle, which differ where weights were trained further.
        """
        identity, piece = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
        for key, info in sorted(self.tensors.items()):
            identity.update(json.dumps((key, info.dtype, info.shape)).encode())
            count = min(_PIECE_BYTES, info.nbytes)
            self._read(info, (info.nbytes - count) // 2, piece[:count])
            identity.update(piece[:count])
        return identity.hexdigest()

    def digest(self, keys: Iterable[str]) -> str:
        """Return an identity of the content of some tensors, wherever they are stored.

        SHA-256, in hex, of canonical key, dtype, shape and bytes of each, sorted by key.

        Raises:
            CheckpointError: As `check_finite`.
        """
        contents = {key: hashlib.sha256() for key in sorted(set(keys))}
        self._scan(contents, lambda key, chunk: contents[key].update(chunk))
        infos = map(self.info, contents)
        facts = [(i.key, i.dtype, i.shape, contents[i.key].hexdigest()) for i in infos]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def check_finite(self, keys: Iterable[str]) -> None:
        """Read tensors and refuse those in which a value is NaN or infinite.

        Raises:
            CheckpointError: Some are; the message says which tensor, how many values, and where.
        """
        self._scan(sorted(set(keys)), lambda key, chunk: None)

    def close(self) -> None:
        """Close the files; later reads open them again."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _scan(self, keys: Iterable[str], take: Callable[[str, memoryview], None]) -> None:
        """Give `take` all chunks of tensors, several at a time; refuse what is not finite."""

        def scanned(key: str) -> Finite:
            found = Finite(self.info(key))
            for chunk in self.chunks(key):
                found.add(chunk)
                take(key, chunk)
            return found

        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            refuse_others(list(pool.map(scanned, keys)))

    def _read(self, info: TensorInfo, start: int, target: memoryview) -> None:
        """Fill `target` with the tensor's bytes from its byte `start` on."""
        position, done = info.offset + start, 0
        try:
            descriptor = self._descriptor(info.file)
            while done < len(target):
                count = os.preadv(descriptor, [target[done:]], position + done)
                if count == 0:
                    raise OSError(0, f"the file ends at byte {position + done}")
                done += count
        except OSError as error:
            raise CheckpointError(
                f"`{info.disk_key}` can no longer be read: {error.strerror}\n  file: {info.file}",
                hint="leave the checkpoint unchanged while it is in use",
            ) from error

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]


def _shard_keys(folder: Path) -> Mapping[str, frozenset[str] | None]:
    """Map each shard's name to the disk keys that the index lists, None without an index."""
    if os.path.lexists(folder / INDEX):
        return read_index(folder / INDEX)
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be read: {reason(error)}", hint="check the folder's permissions"
        ) from error
    return {sole_shard(names, str(folder)): None}


def _open_shard(path: Path, promised: frozenset[str] | None) -> Shard:
    if _is_missing(path):
        raise CheckpointError(
            f"the shard `{path.name}` is missing\n"
            f"  tensors in it: {len(promised or ())}\n  in: {path.parent}",
            hint="fetch the missing file into that folder",
        )
    shard = read_shard(path)
    if promised is not None:
        _compare("lacks", promised - shard.tensors.keys(), path)
        _compare("holds", shard.tensors.keys() - promised, path)
    return shard


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # something is there: reading it says what is wrong
    return False


def _compare(verb: str, keys: Iterable[str], path: Path) -> None:
    if odd := sorted(keys):
        promise = "lists there" if verb == "lacks" else "does not list there"
        raise CheckpointError(
            f"`{path.name}` {verb} tensors that `{INDEX}` {promise}\n"
            f"  {len(odd)}: {', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}\n  file: {path}",
            hint=DAMAGED.replace("the file", "index and shards"),
        )


def _canonical(shards: Iterable[Shard], prefixes: Prefixes) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for disk_key, info in shard.tensors.items():
            key = canonical_key(disk_key, prefixes)
            if key in tensors:
                raise CheckpointError(
                    f"`{tensors[key].disk_key}` and `{disk_key}` both stand for `{key}`\n"
                    f"  files: {tensors[key].file.name}, {shard.path.name}",
                    hint="keep one of the two: the checkpoint mixes two spellings of its keys",
                )
            tensors[key] = replace(info, key=key)
    return tensors
