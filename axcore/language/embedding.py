"""Find the token embedding in a checkpoint and write it in the formats that runtimes read."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UsageError
from ..files import appearing
from ..language_model import Embedding, table_file
from ..model_config import config_parts
from .architectures import architecture_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    import numpy as np

    from ..checkpoint import Checkpoint
    from ..job import Job
    from ..progress import Progress

EMBEDDING_KEYS = (
    "model.embed_tokens.weight",
    "llm.model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
)
HEAD_KEYS = (
    "lm_head.weight",
    "llm.lm_head.weight",
    "language_model.lm_head.weight",
)
"""The output head, which is also the embedding if a checkpoint ties both and stores one."""

STEM = "model.embed_tokens.weight"
ALWAYS = "bf16bin"
FORMATS: Mapping[str, str] = {
    ALWAYS: table_file(""),
    "npy": f"{STEM}.npy",
    "f32bin": f"{STEM}.float32.bin",
    "pth": "embed_tokens.pth",
}
"""Format to file name."""
DTYPES: Mapping[str, str] = {name: "bfloat16" if name == ALWAYS else "float32" for name in FORMATS}

SOURCE_DTYPES = ("bfloat16", "float16", "float32")


def default_embedding(job: Job) -> Embedding:
    """Find a job's token embedding, with the scale that its architecture gives the rows.

    Raises:
        CheckpointError: There is none under a usual name.
    """
    found = find_embedding(job.checkpoint, job.config)
    known, scale = architecture_of(job), 1.0
    if known and known[1].embedding == "root of the width":
        scale = math.sqrt(found.shape[1])
    elif known and "embedding_multiplier" in known[1].read:
        scale = float(job.text_config.get("embedding_multiplier") or 1)
    return replace(found, scale=scale)


def find_embedding(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Embedding:
    """Find the token embedding under one of the usual names.

    Args:
        checkpoint: Tensors under canonical keys.
        config: The checkpoint's ``config.json``; if it ties the word embeddings and only
            the output head is stored, that is the embedding.

    Raises:
        CheckpointError: There is none; the message lists tensors with similar names.
    """
    keys = EMBEDDING_KEYS + (HEAD_KEYS if _ties_embeddings(config) else ())
    for key in keys:
        if key in checkpoint.tensors:
            return Embedding(key, checkpoint.info(key).shape)
    similar = [key for key, info in checkpoint.tensors.items() if _looks_similar(key, info.shape)]
    raise CheckpointError(
        "the checkpoint has no token embedding under a known name\n"
        f"  looked for: {', '.join(keys)}\n"
        f"  similar: {', '.join(similar[:8]) or 'none'}",
        hint="name it in the family's `embed_extract` hook",
    )


def _ties_embeddings(config: Mapping[str, Any]) -> bool:
    return any(part.get("tie_word_embeddings") for part in config_parts(config))


def _looks_similar(key: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and ("embed" in key or "wte" in key)


def write_embedding(
    checkpoint: Checkpoint,
    embedding: Embedding,
    folder: Path,
    formats: Sequence[str],
    progress: Progress,
) -> list[Path]:
    """Write the embedding, or another table, in one pass, holding a few chunks in memory.

    ``model.embed_tokens.weight.bfloat16.bin`` is always written: raw little-endian bfloat16
    ``[vocabulary, hidden]``, row-major. From a bfloat16 checkpoint the bytes are copied. float32
    and float16 are rounded to nearest, ties to even, as torch does; the vendor's ``fp32_to_bf16``
    truncates instead, so its values can be smaller by one unit in the last place.
    `Embedding.factor` is applied before that, in float32; `Embedding.scale` is not.

    Args:
        checkpoint: Where the table is read from.
        embedding: Its key and shape ``[vocabulary, hidden]``.
        folder: Where the files go; each gets its name only when it is complete.
        formats: Further files: "npy" (float32, with header), "f32bin" (raw float32), "pth" (a
            float32 `torch.nn.Embedding` as written by `torch.save`).
        progress: Where the bytes read are reported.

    Returns:
        The files, the bfloat16 table first.

    Raises:
        UsageError: A format is unknown.
        CheckpointError: The tensor is missing, has another shape, or is not floating point.
    """
    wanted = _wanted(formats)
    names = {**FORMATS, ALWAYS: table_file(embedding.name)}
    _check_source(checkpoint, embedding)
    info = checkpoint.info(embedding.key)
    dtypes = {DTYPES[name] for name in wanted}
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name in wanted:
            partial = stack.enter_context(appearing(folder / names[name]))
            files[name] = stack.enter_context(partial.open("wb"))
        for name in files.keys() & FRAMES.keys():
            FRAMES[name](files[name], info.shape)
        task = stack.enter_context(progress.task("embedding", info.nbytes, "B"))
        for chunk in checkpoint.chunks(embedding.key):
            rows, source = chunk, info.dtype
            if embedding.factor != 1:
                rows, source = scaled(chunk, info.dtype, embedding.factor), "float32"
            forms = {dtype: converted(rows, source, dtype) for dtype in dtypes}
            for name, file in files.items():
                file.write(forms[DTYPES[name]])
            task.advance(len(chunk))
    return [folder / names[name] for name in wanted]


def _wanted(formats: Sequence[str]) -> list[str]:
    for name in formats:
        if name not in FORMATS:
            raise UsageError(
                f"there is no embedding format `{name}`",
                hint=f"choose from {', '.join(FORMATS)}",
            )
    return [name for name in FORMATS if name == ALWAYS or name in formats]


def _check_source(checkpoint: Checkpoint, embedding: Embedding) -> None:
    info = checkpoint.info(embedding.key)
    if tuple(info.shape) != tuple(embedding.shape) or len(info.shape) != 2:
        raise CheckpointError(
            f"the token embedding `{embedding.key}` has shape {list(info.shape)} in {info.file}, "
            f"not {list(embedding.shape)} [vocabulary, hidden]",
            hint="check that config.json and the weights belong together",
        )
    if info.dtype not in SOURCE_DTYPES:
        raise CheckpointError(
            f"the token embedding `{embedding.key}` is {info.dtype} in {info.file}",
            hint=f"use a checkpoint that stores it as one of {', '.join(SOURCE_DTYPES)}",
        )


def _write_npy_header(file: BinaryIO, shape: Sequence[int]) -> None:
    import numpy as np

    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_pth_frame(file: BinaryIO, shape: Sequence[int]) -> None:
    """Write a saved `torch.nn.Embedding` without its values, and seek to where they belong."""
    import struct
    import zipfile

    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        table = torch.nn.Embedding(num_embeddings=shape[0], embedding_dim=shape[1])
    # torch leaves a gap in the file for the values, so the table is never in memory as a whole.
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(table, file.name)
    with zipfile.ZipFile(file.name) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
    with open(file.name, "rb") as saved:  # noqa: PTH123  (a name, not a path)
        saved.seek(member.header_offset + 26)  # ZIP local header: lengths of name and extra field
        name, extra = struct.unpack("<HH", saved.read(4))
    file.seek(member.header_offset + 30 + name + extra)


FRAMES: Mapping[str, Callable[[BinaryIO, Sequence[int]], None]] = {
    "npy": _write_npy_header,
    "pth": _write_pth_frame,
}
"""Writes what surrounds the values, by format."""


def converted(chunk: memoryview, source: str, target: str) -> memoryview:
    """Convert `chunk` to another float type; unchanged if the types are equal.

    Args:
        chunk: Whole little-endian values of type `source`.
        source, target: "bfloat16", "float16" or "float32".
    """
    if source == target:
        return chunk
    import ml_dtypes
    import numpy as np

    def dtype(name: str) -> np.dtype[Any]:
        return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)

    values = np.frombuffer(chunk, dtype(source))
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return values.astype(dtype(target)).view(np.uint8).data


def scaled(chunk: memoryview, source: str, factor: float) -> memoryview:
    """Multiply `chunk`, values of type `source`, by `factor`; the result is float32."""
    import numpy as np

    values = np.frombuffer(converted(chunk, source, "float32"), np.float32)
    product: np.ndarray[Any, Any] = values * np.float32(factor)
    return product.view(np.uint8).data
