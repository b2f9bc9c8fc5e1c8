"""Values that cross a hook: where weights come from, and small derived facts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from axcore import Calibration, Component, ModelCard, Port, Profile, Published, Stage, Weight

if TYPE_CHECKING:
    from pathlib import Path

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def counted(shape: tuple[int, ...], first: int = 0) -> Tensor:
    """Return a tensor whose every value is different."""
    return torch.arange(first, first + math.prod(shape)).reshape(shape)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Weight, Tensor, Tensor]:
    """A weight of up to five steps, the tensor it is read from, and what indexing makes of it."""
    source = value = counted(draw(shapes))
    weight = Weight("key")
    for step in draw(st.lists(st.sampled_from(["reshape", "transpose", "slice"]), max_size=5)):
        if step == "reshape":
            inner = draw(st.sampled_from([n for n in range(1, 9) if value.numel() % n == 0]))
            weight, value = weight.reshape(-1, inner), value.reshape(value.numel() // inner, inner)
        elif step == "transpose":
            order = draw(st.permutations(range(value.ndim)))
            weight = weight.transpose(*order)
            value = torch.from_numpy(np.transpose(value.numpy(), order))
        else:
            axis = draw(st.integers(0, value.ndim - 1))
            start = draw(st.integers(0, value.shape[axis] - 1))
            stop = draw(st.integers(start + 1, value.shape[axis]))
            weight = weight.slice(axis, start, stop)
            value = value[(slice(None),) * axis + (slice(start, stop),)]
    return weight, source, value


@given(case=steps())
def test_steps_are_indexing(case: tuple[Weight, Tensor, Tensor]) -> None:
    """Reshape, transpose and slice in any order, on values and on meta. Oracle: plain indexing."""
    weight, source, expected = case
    assert list(weight.keys()) == ["key"]
    assert torch.equal(weight.resolve({"key": source}.__getitem__), expected)
    shape = weight.resolve(lambda _: torch.empty(source.shape, device="meta")).shape
    assert shape == expected.shape


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_concat_joins_along_an_axis(lengths: list[int], data: st.DataObject) -> None:
    """Parts of any length, nested, with steps behind them. Oracle: numpy's concatenate."""
    axis = data.draw(st.integers(0, 1))
    sources = {
        f"part{i}": counted((n, 3) if axis == 0 else (3, n), 100 * i) for i, n in enumerate(lengths)
    }
    inner = Weight.concat([Weight(key) for key in sources], axis)
    whole = Weight.concat([inner, inner], axis).transpose(1, 0)
    joined = np.concatenate([t.numpy() for t in sources.values()] * 2, axis).T
    assert torch.equal(whole.resolve(sources.__getitem__), torch.from_numpy(joined))
    assert list(whole.keys()) == list(sources) * 2
    shape = whole.resolve(lambda key: sources[key].to("meta")).shape
    assert shape == joined.shape


def test_weights_are_values() -> None:
    """A step returns a new weight and leaves the old one; equal ones are equal. Oracle: the law."""
    plain = Weight("a")
    assert plain.reshape(2, -1) != plain == Weight("a")
    assert hash(plain.slice(0, 0, 1)) == hash(Weight("a").slice(0, 0, 1))


# Stages and components ---------------------------------------------------------------------------


def test_keys_of_a_stage() -> None:
    """A prefix, or an entry per parameter as key or weight. Oracle: the module's parameters."""
    module = nn.Linear(2, 3, device="meta")
    prefixed = Stage("a", module, "x.")
    assert prefixed.weights() == {"weight": Weight("x.weight"), "bias": Weight("x.bias")}
    sliced = Weight("w").slice(0, 0, 3)
    assert Stage("a", module, {"weight": sliced, "bias": "b"}).weights() == {
        "weight": sliced,
        "bias": Weight("b"),
    }
    with pytest.raises(KeyError, match="bias"):
        Stage("a", module, {"weight": "w"}).weights()


def test_kind_is_the_name_unless_given() -> None:
    """A stage by itself is its own kind; renaming keeps a kind once given. Oracle: the docs."""
    stage = Stage("a", nn.Identity())
    assert stage.kind == "a"
    assert replace(Stage("a", nn.Identity(), kind="k"), name="b").kind == "k"


def test_what_is_derived() -> None:
    """File names, rows for the language model, and prompts. Oracle: counted by hand."""
    assert ModelCard("toy", "maker/Toy-VL-1B", ("Toy",), {}).stem == "Toy-VL-1B"
    assert Component("c", "c", (), (), (Port("out", (2, 5, 7)),)).rows == 10
    profile = Profile(448, 448, prefill_len=128, kv_cache_len=1023)
    assert profile.max_prompt == 128
    assert replace(profile, last_kv_cache_len=(128, 512, 256)).max_prompt == 640


def test_published_files_are_read_from_a_folder(tmp_path: Path) -> None:
    """`config.json` apart from the others; overrides reach into nested parts alone.

    Oracle: what was written, merged by hand.
    """
    config = {"layers": 9, "text_config": {"width": 64, "kept": 1}, "rope": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"top_k": 1}')
    (tmp_path / "README.md").write_text("none of them")
    tiny = {"layers": 1, "text_config": {"width": 8}, "rope": {"factor": 2}}
    published = Published.read(tmp_path, tiny=tiny)
    assert published == Published(config, {"generation_config.json": {"top_k": 1}}, tiny)
    assert published.tiny_config == {
        "layers": 1, "text_config": {"width": 8, "kept": 1}, "rope": {"factor": 2}
    }  # fmt: skip
    assert published.config == config


def test_graph_input_of_an_image() -> None:
    """Stored uint8 becomes what the graph receives. Oracle: the formula, one pixel by hand."""
    calibration = Calibration("Image", mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[1, 2] = (12, 28, 25)
    made = calibration.graph_input(stored)
    assert made.shape == (1, 3, 2, 3)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    assert made[0, :, 1, 2].tolist() == [1.0, 2.0, -1.0]
    assert Calibration("Numpy").graph_input(stored) is stored
