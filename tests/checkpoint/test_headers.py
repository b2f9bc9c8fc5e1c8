"""Headers are validated before anything in them is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from axcore.checkpoint.headers import DTYPES, read_shard
from axcore.errors import CheckpointError
from axcore.limits import TENSORS

Header = dict[str, Any]

WHOLE = save(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int8)},
    {"format": "pt"},
)
DATA = WHOLE[-28:]
SHARED_FOLDER = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def header() -> Header:
    length = int.from_bytes(WHOLE[:8], "little")
    return dict(json.loads(WHOLE[8 : 8 + length]))


def assemble(text: bytes, data: bytes = DATA) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def changed(change: Callable[[Header], object]) -> bytes:
    entries = header()
    change(entries)
    return assemble(json.dumps(entries).encode())


def set_field(name: str, field: str, value: Any) -> Callable[[Header], object]:
    return lambda entries: entries[name].__setitem__(field, value)


INVALID = "is not a valid safetensors file"
TWICE = json.dumps(header()).replace("{", '{"a": ' + json.dumps(header()["b"]) + ", ", 1)
DAMAGES = {
    "empty": (b"", INVALID),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "absurd length": (b"\xff" * 8 + WHOLE[8:], INVALID),
    "header beyond the file": (len(WHOLE).to_bytes(8, "little") + WHOLE[8:], INVALID),
    "not UTF-8": (assemble(b"\xff\xfe"), INVALID),
    "not JSON": (assemble(b"{"), INVALID),
    "deep JSON": (assemble(b"[" * 100_000), INVALID),
    "a key twice": (assemble(TWICE.encode()), "'a' appears twice"),
    "metadata of numbers": (changed(lambda h: h.update(__metadata__={"n": 1})), INVALID),
    "field missing": (changed(lambda h: h["a"].pop("dtype")), INVALID),
    "unknown dtype": (changed(set_field("a", "dtype", "F7")), INVALID),
    "dtype of half a byte": (
        changed(lambda h: h["b"].update(dtype="F4", shape=[8])),
        "stores `b` as F4, which is not supported",
    ),
    "absurd shape": (changed(set_field("a", "shape", [1 << 40, 1 << 40, 0])), INVALID),
    "wrong size": (changed(set_field("a", "shape", [2, 2])), INVALID),
    "overlap": (changed(set_field("b", "data_offsets", [20, 24])), INVALID),
    "hole": (changed(set_field("b", "data_offsets", [26, 30])), INVALID),
    "out of file": (changed(set_field("b", "data_offsets", [900, 904])), INVALID),
    "many dimensions": (
        changed(set_field("a", "shape", [1] * 100_000)),
        "'a' has 100000 dimensions; at most 8 are read",
    ),
    "a name that moves the cursor": (
        changed(lambda h: h.update({"x\x1b[2J": h.pop("a")})),
        "'x\\x1b[2J' is not the name of a tensor",
    ),
    "a name as long as a book": (changed(lambda h: h.update({"x" * 501: h.pop("a")})), "'xxx"),
    "a header of gigabytes": ((1 << 40).to_bytes(8, "little") + WHOLE[8:], "at most 16777216"),
    "truncated": (WHOLE[:-1], f"size: {len(WHOLE) - 1} bytes"),
    "oversized": (WHOLE + b"\0", f"size: {len(WHOLE) + 1} bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_evidence(damage: str, tmp_path: Path) -> None:
    """Each known damage gives one error naming file and evidence; oracle: the table above."""
    content, evidence = DAMAGES[damage]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_shard(path)
    assert evidence in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A folder of a shard's name; oracle: the kind of error and the path in its message."""
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_shard(tmp_path)


# Against safetensors -----------------------------------------------------------------------------


def agrees_with_safetensors(path: Path, content: bytes) -> None:
    """What safetensors refuses is refused; what it accepts has the same bytes at our offsets."""
    path.write_bytes(content)
    try:
        theirs = {
            key: (spec["dtype"], spec["shape"], spec["data"]) for key, spec in deserialize(content)
        }
    except SafetensorError:
        with pytest.raises(CheckpointError):
            read_shard(path)
        return
    if not all(key.isprintable() for key in theirs):
        with pytest.raises(CheckpointError, match="is not the name of a tensor"):
            read_shard(path)
        return
    if any(dtype not in DTYPES for dtype, _, _ in theirs.values()):
        with pytest.raises(CheckpointError, match="not supported"):
            read_shard(path)
        return
    ours = read_shard(path).tensors
    spellings = {name: spelling for spelling, (name, _) in DTYPES.items()}
    assert theirs == {
        key: (
            spellings[info.dtype], [*info.shape], content[info.offset : info.offset + info.nbytes]
        )
        for key, info in ours.items()
    }  # fmt: skip


json_values = st.recursive(
    st.sampled_from([None, True, 1.5, "F32", "I8", "BF16", "a", "b", ""]) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@SHARED_FOLDER
@given(data=st.data())
def test_changed_bytes_are_read_as_safetensors_reads_them(
    data: st.DataObject, tmp_path: Path
) -> None:
    """Bytes replaced, inserted or cut anywhere; oracle: `safetensors.deserialize`."""
    start = data.draw(st.integers(0, len(WHOLE)))
    stop = data.draw(st.integers(start, min(start + 4, len(WHOLE))))
    content = WHOLE[:start] + data.draw(st.binary(max_size=4)) + WHOLE[stop:]
    agrees_with_safetensors(tmp_path / "x.safetensors", content)


@SHARED_FOLDER
@given(
    name=st.sampled_from(["a", "b"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets"]),
    data=st.data(),
)
def test_a_changed_field_is_read_as_safetensors_reads_it(
    tmp_path: Path, name: str, field: str, data: st.DataObject
) -> None:
    """One field of a good header replaced; oracle: `safetensors.deserialize`."""
    value = data.draw(st.lists(st.integers(0, 28), max_size=3) | json_values)
    agrees_with_safetensors(tmp_path / "x.safetensors", changed(set_field(name, field, value)))


@SHARED_FOLDER
@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
    )
)
def test_every_dtype_is_read_where_safetensors_reads_it(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int]]]
) -> None:
    """Any tensors in a row, empty ones among them; oracle: `safetensors.deserialize`."""
    entries, end = {}, 0
    for key, (dtype, shape) in tensors.items():
        begin, end = end, end + int(np.prod(shape)) * DTYPES[dtype][1]
        entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    data = np.random.default_rng(end).bytes(end)
    path = tmp_path / "x.safetensors"
    agrees_with_safetensors(path, assemble(json.dumps(entries).encode(), data))
    assert set(read_shard(path).tensors) == set(tensors)


def test_tensors_are_counted_before_a_header_is_parsed(tmp_path: Path) -> None:
    """Parsing takes long where there are many. Oracle: a header that no parser gets through."""
    header = b'"data_offsets"' * (TENSORS + 1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=f"more than {TENSORS} tensors"):
        read_shard(path)
