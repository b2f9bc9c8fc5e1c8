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
from safetensors import safe_open
from safetensors.numpy import save

from axcore.checkpoint.headers import DTYPES, read_shard
from axcore.errors import CheckpointError

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


DAMAGES = {
    "empty": (b"", "has 0 bytes"),
    "a few bytes": (b"\x01\x02", "has 2 bytes"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "absurd length": (b"\xff" * 8 + WHOLE[8:], "header of 18446744073709551615 bytes"),
    "beyond the file": (len(WHOLE).to_bytes(8, "little") + WHOLE[8:], "header of"),
    "no text": (assemble(b"\xff\xfe"), "no valid JSON"),
    "no JSON": (assemble(b"{"), "no valid JSON"),
    "deep JSON": (assemble(b"[" * 100_000), "no valid JSON"),
    "no object": (assemble(b"[]"), "no JSON object but list"),
    "a key twice": (assemble(b'{"a": 1, "a": 2}'), "`a` appears twice"),
    "half a surrogate": (assemble(b'{"\\ud800": 1}'), "no valid JSON"),
    "metadata of numbers": (changed(lambda h: h.update(__metadata__={"n": 1})), "text to text"),
    "half a surrogate in metadata": (
        assemble(b'{"__metadata__": {"n": "\\ud800"}}', b""),
        "text to text",
    ),
    "entry of another kind": (changed(lambda h: h.update(a=[1])), "describes `a` by [1]"),
    "field missing": (changed(lambda h: h["a"].pop("dtype")), "describes `a` by"),
    "unknown dtype": (changed(set_field("a", "dtype", "F7")), "unknown dtype 'F7'"),
    "dtype no text": (changed(set_field("a", "dtype", ["F32"])), "unknown dtype ['F32']"),
    "negative shape": (changed(set_field("a", "shape", [-2, -3])), "-2 is negative"),
    "fractional shape": (changed(set_field("a", "shape", [2.0, 3])), "shape [2.0, 3]"),
    "boolean shape": (changed(set_field("a", "shape", [True, 6])), "shape [True, 6]"),
    "absurd shape": (changed(set_field("a", "shape", [1 << 40, 1 << 40, 0])), "absurd shape"),
    "three offsets": (changed(set_field("a", "data_offsets", [0, 24, 28])), "[0, 24, 28]"),
    "end before begin": (changed(set_field("a", "data_offsets", [24, 0])), "offsets 24 to 0"),
    "wrong size": (changed(set_field("a", "shape", [2, 2])), "float32 [2, 2] takes 16 bytes"),
    "overlap": (changed(set_field("b", "data_offsets", [20, 24])), "`a` and `b` overlap"),
    "hole": (changed(set_field("b", "data_offsets", [26, 30])), "hole of 2 bytes between `a`"),
    "out of file": (changed(set_field("b", "data_offsets", [900, 904])), "hole"),
    "truncated": (WHOLE[:-1], "is truncated"),
    "oversized": (WHOLE + b"\0", "is oversized"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_evidence(damage: str, tmp_path: Path) -> None:
    """Each known way to lie gives one error naming file and evidence; oracle: the table above."""
    content, evidence = DAMAGES[damage]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_shard(path)
    assert evidence in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_good_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Keys, dtypes, shapes and positions; oracle: the arrays that safetensors saved."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE)
    tensors = read_shard(path).tensors
    assert {key: (t.dtype, t.shape) for key, t in tensors.items()} == {
        "a": ("float32", (2, 3)),
        "b": ("int8", (4,)),
    }
    for info in tensors.values():
        assert WHOLE[info.offset :][: info.nbytes] in (DATA[:24], DATA[24:])


# What safetensors refuses ------------------------------------------------------------------------


def agrees_with_safetensors(path: Path, content: bytes) -> None:
    """Read `content` both ways: what safetensors refuses we refuse; what both read is the same."""
    path.write_bytes(content)
    try:
        ours = read_shard(path).tensors
    except CheckpointError:
        return
    with safe_open(path, "numpy") as theirs:  # an exception here is a failure of ours
        assert set(theirs.keys()) == set(ours)
        for key, info in ours.items():
            assert tuple(theirs.get_slice(key).get_shape()) == info.shape
            assert DTYPES[theirs.get_slice(key).get_dtype()][0] == info.dtype


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-8, 64)
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["F32", "I8", "BF16", "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(DTYPES)) | json_values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 32), min_size=2, max_size=2) | json_values,
    },
    optional={"more": json_values},
)


@SHARED_FOLDER
@given(data=st.data())
def test_changed_bytes_never_pass_where_safetensors_refuses(
    data: st.DataObject, tmp_path: Path
) -> None:
    """Bytes replaced, inserted or cut anywhere; oracle: safetensors' own `safe_open`."""
    start = data.draw(st.integers(0, len(WHOLE)))
    stop = data.draw(st.integers(start, min(start + 4, len(WHOLE))))
    content = WHOLE[:start] + data.draw(st.binary(max_size=4)) + WHOLE[stop:]
    agrees_with_safetensors(tmp_path / "x.safetensors", content)


@SHARED_FOLDER
@given(
    entries=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "é"]), entries | json_values)
)
def test_made_up_headers_never_pass_where_safetensors_refuses(
    tmp_path: Path, entries: Header
) -> None:
    """Any JSON in the header before the same data; oracle: safetensors' own `safe_open`."""
    agrees_with_safetensors(tmp_path / "x.safetensors", assemble(json.dumps(entries).encode()))


@SHARED_FOLDER
@given(
    name=st.sampled_from(["a", "b"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets"]),
    data=st.data(),
)
def test_one_changed_field_never_passes_where_safetensors_refuses(
    tmp_path: Path, name: str, field: str, data: st.DataObject
) -> None:
    """One field of a good header replaced; oracle: safetensors' own `safe_open`."""
    value = data.draw(st.lists(st.integers(0, 28), max_size=3) | json_values)
    agrees_with_safetensors(tmp_path / "x.safetensors", changed(set_field(name, field, value)))
