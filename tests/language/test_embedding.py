"""Embedding files, written from real safetensors files and read back by others."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.torch import save_file

from axcore import CheckpointError, Embedding, UsageError
from axcore.checkpoint import Checkpoint
from axcore.language import find_embedding, write_embedding
from axcore.language.embedding import EMBEDDING_KEYS
from axcore.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "model.embed_tokens.weight"
BIN, NPY, F32 = f"{KEY}.bfloat16.bin", f"{KEY}.npy", f"{KEY}.float32.bin"

# float32 patterns: ties below and above, the largest number, infinity, not-a-numbers.
EDGES = (0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFFC00000)


def checkpoint_of(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Foo"], **config}))
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder)


def write(checkpoint: Checkpoint, folder: Path, *formats: str) -> list[Path]:
    embedding = Embedding(KEY, checkpoint.info(KEY).shape)
    return write_embedding(checkpoint, embedding, folder, formats, Silent())


def bits(table: torch.Tensor) -> bytes:
    return table.contiguous().view(torch.uint8).numpy().tobytes()


def test_a_bfloat16_table_is_copied_to_the_bit(tmp_path: Path) -> None:
    """All 65536 bit patterns, not-a-numbers included, in several chunks and between two other
    tensors. Oracle: the bytes that torch holds.
    """
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    table = patterns.view(torch.bfloat16).reshape(512, 128).repeat(80, 1)
    others = {"a": torch.ones(3), "z": torch.ones(5)}
    checkpoint = checkpoint_of(tmp_path / "in", {KEY: table, **others})
    assert checkpoint.info(KEY).nbytes > 8 << 20
    assert write(checkpoint, tmp_path) == [tmp_path / BIN]
    assert (tmp_path / BIN).read_bytes() == bits(table)


@given(
    npst.arrays(
        np.uint32,
        npst.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.integers(0, 2**32 - 1) | st.sampled_from(EDGES),
    )
)
def test_float32_is_rounded_as_torch_rounds_it(
    tmp_path_factory: pytest.TempPathFactory, patterns: np.ndarray[Any, Any]
) -> None:
    """Nearest, ties to even, over all bit patterns. Oracle: torch's cast; a not-a-number must
    stay one, whichever.
    """
    folder = tmp_path_factory.mktemp("embedding")
    table = torch.from_numpy(patterns.view(np.float32))
    write(checkpoint_of(folder / "in", {KEY: table}), folder)
    written = np.fromfile(folder / BIN, np.int16).reshape(patterns.shape)
    found = torch.from_numpy(written).view(torch.bfloat16)
    assert torch.equal(found.isnan(), table.isnan())
    expected = table.to(torch.bfloat16)
    numbers = ~table.isnan()
    assert torch.equal(found.view(torch.int16)[numbers], expected.view(torch.int16)[numbers])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_float32_files_hold_the_values_of_the_checkpoint(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Widening loses nothing. Oracle: torch's cast, and numpy's reader of the .npy."""
    table = torch.randn(300, 64, generator=torch.manual_seed(0)).to(dtype)
    paths = write(checkpoint_of(tmp_path / "in", {KEY: table}), tmp_path, "f32bin", "npy")
    assert paths == [tmp_path / BIN, tmp_path / NPY, tmp_path / F32]
    assert (tmp_path / BIN).read_bytes() == bits(table.to(torch.bfloat16))
    expected = table.to(torch.float32).numpy()
    loaded = np.load(tmp_path / NPY, allow_pickle=False)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, expected)
    np.testing.assert_array_equal(np.fromfile(tmp_path / F32, "<f4").reshape(300, 64), expected)


def test_the_pth_file_is_a_saved_embedding_module(tmp_path: Path) -> None:
    """Oracle: `torch.load` of the file, which the program reading it calls."""
    table = torch.randn(70, 24).bfloat16()
    write(checkpoint_of(tmp_path / "in", {KEY: table}), tmp_path, "pth")
    loaded = torch.load(tmp_path / "embed_tokens.pth", weights_only=False)
    assert type(loaded) is torch.nn.Embedding
    assert loaded.weight.dtype == torch.float32
    assert torch.equal(loaded.weight.detach(), table.float())


def test_a_failure_leaves_the_earlier_files_and_nothing_else(tmp_path: Path) -> None:
    """Oracle: the folder's contents before and after."""
    checkpoint = checkpoint_of(tmp_path / "in", {KEY: torch.ones(4, 4)})
    (tmp_path / BIN).write_bytes(b"earlier")

    class Full(Silent):
        @contextmanager
        def task(self, label: str, total: float, unit: str = "") -> Iterator[Any]:
            raise OSError(28, "No space left on device")
            yield

    with pytest.raises(OSError, match="No space"):
        write_embedding(checkpoint, Embedding(KEY, (4, 4)), tmp_path, ["npy"], Full())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", BIN]
    assert (tmp_path / BIN).read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("table", "shape", "reason"),
    [
        (torch.ones(4, 4), (4, 8), r"\[4, 4\].*not \[4, 8\]"),
        (torch.ones(4), (4,), r"shape \[4\]"),
        (torch.ones(4, 4, dtype=torch.int8), (4, 4), "is int8"),
    ],
)
def test_a_tensor_that_is_no_table_is_refused(
    tmp_path: Path, table: torch.Tensor, shape: tuple[int, ...], reason: str
) -> None:
    """Nothing is written then. Oracle: the words of the message, the empty folder."""
    checkpoint = checkpoint_of(tmp_path / "in", {KEY: table})
    with pytest.raises(CheckpointError, match=reason):
        write_embedding(checkpoint, Embedding(KEY, shape), tmp_path, [], Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_multiplied_while_they_are_written(tmp_path: Path, dtype: torch.dtype) -> None:
    """In float32, over several chunks, rounded once. Oracle: torch."""
    table = torch.randn(70_000, 64).to(dtype)
    checkpoint = checkpoint_of(tmp_path / "in", {KEY: table})
    embedding = Embedding(KEY, (70_000, 64), scale=3.0, factor=12.5)
    write_embedding(checkpoint, embedding, tmp_path, ["f32bin"], Silent())
    product = table.float() * 12.5
    assert (tmp_path / F32).read_bytes() == bits(product)
    assert (tmp_path / BIN).read_bytes() == bits(product.bfloat16())


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    """Oracle: the words of the message."""
    checkpoint = checkpoint_of(tmp_path / "in", {KEY: torch.ones(4, 4)})
    with pytest.raises(UsageError, match="`gguf`") as caught:
        write(checkpoint, tmp_path, "gguf")
    assert "npy" in caught.value.hint


@pytest.mark.parametrize("key", EMBEDDING_KEYS)
def test_every_known_name_is_found(tmp_path: Path, key: str) -> None:
    """Oracle: the one table of the checkpoint."""
    tensors = {key: torch.ones(6, 4), "lm_head.weight": torch.ones(6, 4)}
    checkpoint = checkpoint_of(tmp_path / "in", tensors)
    assert find_embedding(checkpoint, checkpoint.config) == Embedding(key, (6, 4))


@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}]
)
def test_a_tied_head_stands_in_for_a_missing_table(tmp_path: Path, config: dict[str, Any]) -> None:
    """Only where the config ties them. Oracle: the one table of the checkpoint."""
    checkpoint = checkpoint_of(tmp_path / "in", {"lm_head.weight": torch.ones(6, 4)}, **config)
    assert find_embedding(checkpoint, checkpoint.config).key == "lm_head.weight"
    with pytest.raises(CheckpointError):
        find_embedding(checkpoint, {})


def test_a_missing_table_lists_what_looks_like_one(tmp_path: Path) -> None:
    """Oracle: the words of the message."""
    tensors = {"decoder.embed.weight": torch.ones(6, 4), "norm.weight": torch.ones(4)}
    checkpoint = checkpoint_of(tmp_path / "in", tensors)
    with pytest.raises(CheckpointError, match=r"similar: decoder\.embed\.weight\n|$") as caught:
        find_embedding(checkpoint, checkpoint.config)
    assert "similar: decoder.embed.weight" in caught.value.message
    assert "norm.weight" not in caught.value.message
    assert "embed_extract" in caught.value.hint


LEAN = """\
import resource, sys
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from axcore.checkpoint import Checkpoint
from axcore.language import find_embedding, write_embedding
from axcore.progress import Silent
checkpoint = Checkpoint.open(Path(sys.argv[1]))
embedding = find_embedding(checkpoint, checkpoint.config)
write_embedding(checkpoint, embedding, Path(sys.argv[2]), ["npy"], Silent())
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 150 << 10, f"{grown >> 10} MiB"
heavy = {"torch", "transformers", "huggingface_hub", "onnx", "onnxruntime"}
assert not heavy & set(sys.modules)
"""


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """A table of 192 MiB in less than 150 MiB. Oracle: the kernel's peak of a fresh process."""
    checkpoint_of(tmp_path / "in", {KEY: torch.zeros(3 << 14, 1 << 11, dtype=torch.bfloat16)})
    command = [sys.executable, "-c", LEAN, str(tmp_path / "in"), str(tmp_path)]
    subprocess.run(command, check=True)
    assert (tmp_path / NPY).stat().st_size > 384 << 20
