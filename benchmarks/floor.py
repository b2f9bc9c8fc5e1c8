"""The least that an export must do: read bfloat16 tensors, widen to float32, write.

With numpy, a tensor at a time, one thread; no graph is made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def tensors(shard: Path, prefixes: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Yield the bits of every bfloat16 tensor under one of `prefixes`: uint16, flat."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name.startswith(prefixes):
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                yield np.fromfile(file, np.uint16, (end - begin) // 2)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint", type=Path)
parser.add_argument("out", type=Path, help="file")
parser.add_argument("--prefix", required=True, nargs="+", help="of the tower's tensors")
arguments = parser.parse_args()

with arguments.out.open("wb") as out:
    for shard in sorted(arguments.checkpoint.glob("*.safetensors")):
        for bits in tensors(shard, tuple(arguments.prefix)):
            (bits.astype(np.uint32) << 16).tofile(out)
