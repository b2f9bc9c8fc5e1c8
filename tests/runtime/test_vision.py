"""Samples to rows: each chain's own, exactly as many as the prompt has places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from axcore import Calibration, ContractError, Port, Prompt
from axcore.runtime.vision import VisionSide, further_name
from axcore.toolchains.contract import GraphFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Sample

    Array = np.ndarray[Any, Any]

WIDTH = 3


def graph(component: str, after: str | None, *layers: int) -> GraphFile:
    ports = (Port("rows", (1, 2, WIDTH)), *(Port(f"l{n}", (1, 2, WIDTH), layer=n) for n in layers))
    return GraphFile(
        component, (Port("x", (1, 2)),), ports, Calibration(), "a.tar", 0, {}, component, after
    )


GRAPHS = (graph("eye", "", 4, 1), graph("ear", ""), graph("bridge", "ear"))


class Model:
    """A stand-in for sessions: two rows a sample, full of its number; side rows are negative."""

    def open(self) -> None:
        """Nothing is to be opened."""

    def features(self, sample: Sample, first: str = "") -> dict[str, Array]:
        rows = np.full((1, 2, WIDTH), sample["x"], np.float16)
        if first == "eye":
            sides = {further_name("eye", f"l{n}"): -n * rows for n in (4, 1)}
            return {"eye": rows, **sides}
        return {"ear": rows * 0, "bridge": rows}


def rows(
    places: Mapping[str, Any], images: Mapping[str, list[float]], graphs: Any = GRAPHS
) -> Mapping[str, Any]:
    samples = {name: [{"x": np.float32(n)} for n in numbers] for name, numbers in images.items()}
    as_arrays = {
        name: [np.array(run, np.int64) for run in own]
        if own and isinstance(own[0], list)
        else np.array(own, np.int64)
        for name, own in places.items()
    }
    prompt = Prompt(np.zeros(9, np.int64), np.arange(9)[None], as_arrays, samples)
    return VisionSide(Model(), graphs).rows(prompt)


def test_chains_keep_their_rows() -> None:
    """In the prompt's order of samples, side rows by layer. Oracle: the samples' numbers."""
    made = rows({"bridge": [0, 1], "eye": [2, 3, 4, 5]}, {"eye": [5, 6], "ear": [7]})
    np.testing.assert_array_equal(made["bridge"].hidden, np.full((2, WIDTH), 7))
    np.testing.assert_array_equal(made["eye"].hidden[:, 0], [5, 5, 6, 6])
    assert made["eye"].hidden.dtype == np.float32
    assert set(made["eye"].added) == {1, 4}
    np.testing.assert_array_equal(made["eye"].added[4][:, 0], [-20, -20, -24, -24])


def test_rows_without_places_are_named_run_by_run() -> None:
    """Padding of each run is dropped, of side rows too. Oracle: the samples' numbers."""
    made = rows({"eye": [[2], [3, 4]]}, {"eye": [5, 6]})
    np.testing.assert_array_equal(made["eye"].hidden[:, 0], [5, 6, 6])
    np.testing.assert_array_equal(made["eye"].added[1][:, 0], [-5, -6, -6])


def test_text_alone_has_no_rows() -> None:
    """As families write it. Oracle: nothing is run."""
    assert rows({"eye": [], "bridge": []}, {"eye": [], "ear": []}) == {}


@pytest.mark.parametrize(
    ("places", "images", "message"),
    [
        ({"eye": [0]}, {"eye": [1]}, "places for 1 rows of `eye`; its 1 samples give 2"),
        ({"eye": [0, 1, 2]}, {"eye": [1]}, "places for 3 rows of `eye`; its 1 samples give 2"),
        ({"eye": [0, 1, 2]}, {"eye": [1, 2]}, "places for 3 rows of `eye`; its 2 samples give 4"),
        ({"eye": [[0, 1, 2], [3]]}, {"eye": [1, 2]}, r"\[3, 1\] rows of `eye`; .* \[2, 2\]"),
        ({"eye": [[0, 1]]}, {"eye": [1, 2]}, r"\[2\] rows of `eye`; its samples give \[2, 2\]"),
        ({"nose": [0, 1]}, {"eye": [1]}, "places for `nose`; components: eye, ear, bridge"),
        ({"eye": [0, 1]}, {"eye": [1], "ear": [1]}, "1 samples for `ear`, and no place"),
        ({"bridge": [0, 1]}, {"bridge": [1]}, "1 samples for `bridge`, and no place"),
        ({"eye": [0, 0]}, {"eye": [1]}, "not different indices"),
        ({"eye": [0, 9]}, {"eye": [1]}, "not different indices, int64, of its 9 tokens"),
        ({"eye": [0, -1]}, {"eye": [1]}, "not different indices"),
        ({"eye": [0, 1], "bridge": [1, 2]}, {"eye": [1], "ear": [1]}, "not different indices"),
    ],
)
def test_places_that_samples_do_not_fill_are_refused(
    places: Mapping[str, Any], images: Mapping[str, list[float]], message: str
) -> None:
    """With the numbers, in place of rows shifted into the next picture. Oracle: two rows a run."""
    with pytest.raises(ContractError, match=message) as raised:
        rows(places, images)
    assert "prepare_prompt" in raised.value.hint


def test_bundles_that_do_not_name_chains_have_one() -> None:
    """The component before is taken. Oracle: bundles of versions that knew one chain."""
    chain = (graph("ear", None), graph("bridge", None))
    assert rows({"bridge": [0, 1]}, {"ear": [7]}, chain)["bridge"].hidden[0, 0] == 7
