"""A checkpoint folder is opened without reading weights, and read exactly."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from axcore.checkpoint import Checkpoint, canonical_key, disk_key
from axcore.errors import CheckpointError

PREFIXES = {
    "visual.": ("visual.", "model.visual."),
    "model.": ("model.language_model.", "model."),
    "lm_head.": ("lm_head.",),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.int64, torch.uint8]
INDEX = "model.safetensors.index.json"


def write(folder: Path, shards: Mapping[str, Mapping[str, torch.Tensor]]) -> Path:
    """Write a sharded checkpoint with its index."""
    (folder / "config.json").write_text('{"architectures": ["Toy"]}')
    for name, tensors in shards.items():
        save_file(dict(tensors), folder / name)
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards: the language model in the first, the vision tower in the second."""
    return write(
        tmp_path,
        {
            "one.safetensors": {"model.language_model.norm.weight": torch.ones(8)},
            "two.safetensors": {
                "model.visual.a": torch.zeros(2, 3),
                "model.visual.b": torch.arange(4, dtype=torch.bfloat16),
            },
        },
    )


# Values ------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    keys = draw(st.lists(st.text("abcé.", min_size=1, max_size=6), max_size=5, unique=True))
    made = {}
    for key in keys:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        count = int(np.prod(shape)) * dtype.itemsize
        bits = np.random.RandomState(draw(st.integers(0, 99))).bytes(count)
        raw = torch.tensor(list(bits), dtype=torch.uint8)
        made[key] = raw.view(dtype).reshape(shape)
    return made


@settings(max_examples=60, deadline=None)
@given(tensors(), st.integers(1, 40))
def test_every_way_of_reading_gives_the_saved_bytes(
    saved: dict[str, torch.Tensor], chunk_bytes: int
) -> None:
    """Tensor, array and chunks, in any dtype and shape; oracle: what safetensors was given."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text("{}")
        save_file(saved, folder / "weights.safetensors")
        with Checkpoint.open(folder) as checkpoint:
            assert set(checkpoint.tensors) == set(saved)
            for key, expected in saved.items():
                bits = expected.reshape(-1).view(torch.uint8).numpy().tobytes()
                read = checkpoint.tensor(key)
                assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
                assert read.reshape(-1).view(torch.uint8).numpy().tobytes() == bits
                array = checkpoint.array(key)
                assert (str(array.dtype), array.shape) == (str(read.dtype)[6:], tuple(read.shape))
                assert array.tobytes() == bits
                assert b"".join(map(bytes, checkpoint.chunks(key, chunk_bytes))) == bits


def test_threads_read_the_same_as_one_reader(sharded: Path) -> None:
    """Many threads share the descriptors; oracle: safetensors' own `load_file`."""
    expected = load_file(sharded / "two.safetensors")
    with Checkpoint.open(sharded, PREFIXES) as checkpoint, ThreadPoolExecutor(8) as pool:
        for key in ["visual.a", "visual.b"] * 100:
            assert pool.submit(checkpoint.tensor, key).result().equal(expected[f"model.{key}"])


def test_reads_that_come_back_short_are_continued(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reads at most 2 GB at once; a stand-in for its call gives 3 bytes at a time."""
    whole_read = os.preadv

    def short_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return whole_read(descriptor, [buffers[0][:3]], offset)

    monkeypatch.setattr(os, "preadv", short_read)
    with Checkpoint.open(sharded, PREFIXES) as checkpoint:
        assert checkpoint.tensor("visual.b").tolist() == [0, 1, 2, 3]


def refuses(*_: int) -> int:
    raise OSError(errno.EXDEV, "between file systems")


def stops_half_way(*arguments: int) -> int:
    source, target, count, start, at = arguments
    return os.pwrite(target, os.pread(source, count // 2, start), at) if count == 12 else 0


@pytest.mark.parametrize("kernel", [None, "absent", refuses, stops_half_way])
def test_bytes_are_copied_with_and_without_the_kernel(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: object
) -> None:
    """Stand-ins for systems and file systems that cannot; oracle: the numbers saved."""
    write(sharded, {"one.safetensors": {"visual.a": torch.arange(6, dtype=torch.int16)}})
    if kernel == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    elif kernel:
        monkeypatch.setattr(os, "copy_file_range", kernel)
    copied = tmp_path / "copied"
    with Checkpoint.open(sharded, PREFIXES) as checkpoint, copied.open("w+b") as file:
        checkpoint.copy("visual.a", file.fileno(), 3)
    assert copied.read_bytes() == bytes(3) + np.arange(6, dtype=np.int16).tobytes()


def test_descriptors_are_closed_and_opened_again_on_demand(sharded: Path) -> None:
    """One descriptor for each shard that was read, none after; oracle: /proc/self/fd."""

    def opened() -> list[str]:
        paths = map(_target, Path("/proc/self/fd").iterdir())
        return [path for path in paths if path.startswith(str(sharded))]

    with Checkpoint.open(sharded, PREFIXES) as checkpoint:
        assert opened() == []
        checkpoint.tensor("visual.a")
        checkpoint.tensor("visual.b")
        assert opened() == [str(sharded / "two.safetensors")]
    assert opened() == []
    assert checkpoint.tensor("visual.a").shape == (2, 3)
    checkpoint.close()


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the descriptor of the listing itself
        return ""


# Keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_disk", "canonical"),
    [
        ("visual.x", "visual.x"),
        ("model.visual.x", "visual.x"),
        ("model.language_model.layers.0.q", "model.layers.0.q"),
        ("model.layers.0.q", "model.layers.0.q"),
        ("lm_head.weight", "lm_head.weight"),
        ("projector.x", "projector.x"),
    ],
)
def test_the_longest_spelling_wins(on_disk: str, canonical: str) -> None:
    """Spellings of one layout; oracle: the published ones of Qwen2.5-VL."""
    assert canonical_key(on_disk, PREFIXES) == canonical


@given(
    st.sampled_from(["visual.", "model.", "lm_head.", "other."]),
    st.text("xyz01.", min_size=1, max_size=8),
)
def test_writing_a_key_and_reading_it_back_gives_the_key(prefix: str, rest: str) -> None:
    """`canonical_key` undoes `disk_key`; oracle: the key itself."""
    assert canonical_key(disk_key(prefix + rest, PREFIXES), PREFIXES) == prefix + rest


def test_two_spellings_of_one_key_are_refused(tmp_path: Path) -> None:
    """A checkpoint that holds both `visual.x` and `model.visual.x`; the error names both."""
    write(tmp_path, {"s.safetensors": {"visual.x": torch.ones(1), "model.visual.x": torch.ones(1)}})
    with pytest.raises(CheckpointError, match=r"`visual\.x` and|and `visual\.x`"):
        Checkpoint.open(tmp_path, PREFIXES)
    assert len(Checkpoint.open(tmp_path).tensors) == 2


def test_an_unknown_key_is_refused_with_its_neighbours(sharded: Path) -> None:
    """The error quotes the key and the nearest known ones."""
    with pytest.raises(CheckpointError, match=r"(?s)`visual\.c`.*nearest: visual\.") as caught:
        Checkpoint.open(sharded, PREFIXES).tensor("visual.c")
    assert caught.value.hint


# Which shards are needed -------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [{"visual.a"}, {"visual.a", "visual.b"}], ids=len)
def test_only_the_shards_of_wanted_tensors_need_be_there(sharded: Path, wanted: set[str]) -> None:
    """With the language model's shard gone the vision side opens, and the whole does not.

    Of a shard that is opened, tensors that are not wanted are not listed.
    """
    (sharded / "one.safetensors").unlink()
    opened = Checkpoint.open(sharded, PREFIXES, only=wanted.__contains__)
    assert opened.tensors.keys() == wanted
    with pytest.raises(
        CheckpointError, match=r"(?s)`one\.safetensors` is missing.*tensors in it: 1"
    ):
        Checkpoint.open(sharded, PREFIXES)


@pytest.mark.parametrize(
    ("weight_map", "evidence"),
    [
        ({"x": "../one.safetensors"}, "not a safetensors file beside it"),
        ({"x": "/etc/one.safetensors"}, "not a safetensors file beside it"),
        ({"x": "sub/one.safetensors"}, "not a safetensors file beside it"),
        ({"x": "sub\\one.safetensors"}, "not a safetensors file beside it"),
        ({"x": ".."}, "names '..'"),
        ({"x": "one\0.safetensors"}, "not a safetensors file beside it"),
        ({"x": "pytorch_model.bin"}, "pytorch_model.bin"),
        ({"x": ["one.safetensors"]}, "weight_map.x: ['one.safetensors'] is not the name"),
        (["x"], "no `weight_map` with an object"),
        ({"a": "one.safetensors"}, "lacks tensors that"),
        ({}, "no tensor"),
    ],
)
def test_an_index_that_lies_is_refused(sharded: Path, weight_map: object, evidence: str) -> None:
    """Names outside the folder, no names, and keys that the shard lacks; each with evidence."""
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(sharded).info("x")
    assert evidence in caught.value.message
    assert caught.value.hint


def test_a_tensor_that_the_index_does_not_place_is_refused(sharded: Path) -> None:
    """The shard holds what the index does not list; the error names the tensor."""
    index = json.loads((sharded / INDEX).read_text())
    del index["weight_map"]["model.visual.b"]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"(?s)holds tensors that.*1: model\.visual\.b"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("index", ['{"weight_map": {"a": "x", "a": "y"}}', "[]", "{}", "{", "\xff"])
def test_an_index_of_another_form_is_refused(sharded: Path, index: str) -> None:
    """A key twice, no object, no map, no JSON, no text."""
    (sharded / INDEX).write_text(index, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"not an index with a `weight_map`"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    ("names", "evidence"),
    [
        ([], "no weights"),
        (["pytorch_model.bin"], r"pickles \(pytorch_model\.bin\)"),
        (["consolidated.00.pth", "notes.txt"], r"pickles \(consolidated\.00\.pth\)"),
        (["a.safetensors", "b.safetensors"], "2 safetensors files"),
    ],
)
def test_a_folder_without_usable_weights_is_refused(
    tmp_path: Path, names: list[str], evidence: str
) -> None:
    """Pickles are named and never opened (these are no pickles at all, which nothing notices)."""
    (tmp_path / "config.json").write_text("{}")
    for name in names:
        (tmp_path / name).write_text("not what the suffix says")
    with pytest.raises(CheckpointError, match=evidence) as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("config", [None, "[]", "{", '"text"', "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(sharded: Path, config: str | None) -> None:
    """Missing, no JSON, no object: one error that names the file."""
    (sharded / "config.json").unlink()
    if config is not None:
        (sharded / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(sharded)


def test_code_named_by_the_config_is_not_executed(sharded: Path) -> None:
    """An `auto_map` stays text; oracle: the file its module would leave."""
    (sharded / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Evil"}}')
    (sharded / "evil.py").write_text(f"open({str(sharded / 'ran')!r}, 'w')")
    assert Checkpoint.open(sharded).config["auto_map"] == {"AutoConfig": "evil.Evil"}
    assert not (sharded / "ran").exists()


def test_a_shard_that_shrinks_in_use_is_an_error(sharded: Path) -> None:
    """The file is cut after it was opened: reading says so, naming it."""
    checkpoint = Checkpoint.open(sharded, PREFIXES)
    os.truncate(sharded / "two.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"(?s)can no longer be read.*two\.safetensors"):
        checkpoint.tensor("visual.b")
    checkpoint.close()


def test_a_device_or_pipe_is_no_shard(sharded: Path) -> None:
    """A pipe of a shard's name is refused at once instead of waited for."""
    (sharded / "two.safetensors").unlink()
    os.mkfifo(sharded / "two.safetensors")
    with pytest.raises(CheckpointError, match="two"):
        Checkpoint.open(sharded)


# Identity ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files, times included, in another folder."""
    return shutil.copytree(sharded, tmp_path_factory.mktemp("copy") / "moved")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def overwrite(path: Path) -> None:
    """Write the same number of other bytes, and set the time of writing back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path) -> None:
    """Put another file of the same size and time in its place."""
    other = shutil.copy2(path, path.with_name("other"))
    overwrite(other)
    other.replace(path)


@pytest.mark.parametrize("change", [touch, overwrite, replace])
def test_the_signature_follows_every_change(sharded: Path, change: Callable[[Path], None]) -> None:
    """Other weights of the same size and time have another signature; oracle: the change made."""
    before = Checkpoint.open(sharded).signature()
    assert Checkpoint.open(sharded).signature() == before
    change(sharded / "one.safetensors")
    assert Checkpoint.open(sharded).signature() != before


def test_the_signature_does_not_follow_the_place(sharded: Path) -> None:
    """A folder that is moved keeps it: nothing in it has changed."""
    before = Checkpoint.open(sharded).signature()
    assert Checkpoint.open(sharded.rename(sharded.with_name("moved"))).signature() == before


def test_the_fingerprint_follows_weights_and_not_their_files(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Equal for other shards, times and spellings; different once a tensor is trained further.

    A large tensor is looked at in its middle alone. Oracle: what was saved.
    """
    tensors = {"visual.a": torch.zeros(100_000), "model.norm.weight": torch.ones(8)}
    spelt = {
        "model.visual.a": tensors["visual.a"],
        "model.language_model.norm.weight": torch.ones(8),
    }

    def fingerprint(*shards: Mapping[str, torch.Tensor]) -> str:
        folder = tmp_path_factory.mktemp("fingerprint")
        write(folder, {f"{i}.safetensors": shard for i, shard in enumerate(shards)})
        return Checkpoint.open(folder, PREFIXES).fingerprint()

    before = fingerprint(tensors)
    assert fingerprint(*({name: tensor} for name, tensor in spelt.items())) == before
    for name in tensors:
        trained = {**tensors, name: tensors[name] + 0.5}
        assert fingerprint(trained) != before
    assert fingerprint({**tensors, "visual.a": torch.zeros(1000, 100)}) != before


def test_the_digest_follows_content_alone(
    sharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same tensors in one file, under another spelling, read at another time: same digest."""
    one_file = tmp_path_factory.mktemp("one")
    (one_file / "config.json").write_text("{}")
    content = load_file(sharded / "two.safetensors")
    save_file({key[6:]: value for key, value in content.items()}, one_file / "model.safetensors")
    with Checkpoint.open(sharded, PREFIXES) as many, Checkpoint.open(one_file, PREFIXES) as one:
        digest = many.digest(["visual.a", "visual.b"])
        assert one.digest(["visual.b", "visual.a", "visual.b"]) == digest
        assert many.digest(["visual.a"]) != digest


def test_bytes_shape_and_dtype_enter_the_digest(tmp_path: Path) -> None:
    """Another byte anywhere, and equal bytes in another shape or dtype, are another content."""
    zeros = torch.zeros(24, dtype=torch.uint8)
    tensors = [zeros.index_fill(0, torch.tensor(n), 1).view(torch.float32) for n in range(24)]
    tensors += [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32)]
    digests = set()
    for tensor in tensors:
        with Checkpoint.open(write(tmp_path, {"s.safetensors": {"x": tensor}})) as checkpoint:
            digests.add(checkpoint.digest(["x"]))
    assert len(digests) == len(tensors)
