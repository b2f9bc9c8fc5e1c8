"""A toolchain that nobody here wrote: its targets, its operator table, and its builds."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from ..bundles import ABACUS, MODEL, STEM, Axcore, Outcome, contents

if TYPE_CHECKING:
    from pathlib import Path

LISTED = {"MatMul", "Add", "Softmax"}


@pytest.fixture
def convert(axcore: Axcore, abacus: None, checkpoint: Path, tmp_path: Path) -> Any:
    """Convert with it, options as text; returns what was printed and the manifest."""

    def run(options: str) -> tuple[Outcome, dict[str, Any]]:
        asked = ["convert", MODEL, "--checkpoint", checkpoint, "-o", tmp_path / "out"]
        done = axcore(*asked, "--toolchain", "abacus", "--no-verify", *options.split())
        assert done.code == 0, done.err
        return done, json.loads((tmp_path / "out" / "axcore.json").read_text())

    return run


def test_its_table_is_what_graphs_are_checked_against(
    convert: Any, axcore: Axcore, tmp_path: Path
) -> None:
    """In a conversion, of a bundle and of a file. Oracle: the operators that onnx reads."""
    done, manifest = convert("--frame wood")
    (component,) = manifest["components"]
    graph = tmp_path / "out" / f"{STEM}.onnx"
    nodes = onnx.load(graph, load_external_data=False).graph.node
    strange = [(node.name, node.op_type) for node in nodes if node.op_type not in LISTED]
    assert strange
    assert [(f["node"], f["op"]) for f in component["findings"]] == strange
    assert {f["remedy"] for f in component["findings"]} == {"count on brass"}
    assert done.err.count("not in the operator table of wood") == len(strange)
    assert (manifest["toolchain"], manifest["target"]) == ("abacus", "wood")
    for asked in ([tmp_path / "out"], [graph, "--toolchain", "abacus"]):
        found = axcore("lint", *asked, "--json")
        assert found.code == 1
        assert [(f["node"], f["op"]) for f in json.loads(found.out)] == strange
    assert axcore("lint", graph).code == 0  # Pulsar2's table has them all


def test_a_target_without_table_is_said_once_and_nothing_is_claimed(
    convert: Any, axcore: Axcore, tmp_path: Path
) -> None:
    """Not in a conversion, and not by ``lint``. Oracle: the target's declaration."""
    done, manifest = convert("--frame brass")
    assert done.err.count("no operator table is published for brass") == 1
    assert "lint-vision" not in done.err
    assert [component["findings"] for component in manifest["components"]] == [None]
    asked = axcore("lint", tmp_path / "out")
    assert (asked.code, asked.out) == (2, "")
    assert "no operator table is published for brass" in asked.err
    assert re.search(r"hint: .*tables of wood\n", asked.err)


def test_another_target_keeps_the_graphs_and_the_build(
    convert: Any, axcore: Axcore, tmp_path: Path
) -> None:
    """And what is not asked for is not done. Oracle: the steps that are said to be kept."""
    convert("--frame brass")
    first = axcore("build", tmp_path / "out", "--beads", "five")
    assert first.out == f"{tmp_path / 'out' / STEM}.count\n", first.err
    done, _ = convert("--frame wood")
    assert "export-vision: kept" in done.err
    assert "lint-vision: done in" in done.err
    assert axcore("build", tmp_path / "out", "--beads", "five", "--frame", "brass").out == first.out
    done, manifest = convert("--frame wood --no-lint")
    assert "lint" not in done.err
    assert [component["findings"] for component in manifest["components"]] == [None]


def test_a_target_that_cannot_be_is_refused_by_a_build(
    axcore: Axcore, abacus: None, bundle: Path
) -> None:
    """Before the toolchain does anything. Oracle: what it declares, and the files before."""
    before = contents(bundle)
    done = axcore("build", bundle, "--toolchain", "abacus", "--frame", "glass")
    assert (done.code, "no frame is made of glass" in done.err) == (2, True), done.err
    assert contents(bundle) == before


def test_it_is_written_against_the_public_doors_alone() -> None:
    """As its author would. Oracle: the names that are imported."""
    doors = set(re.findall(r"^ *from (axcore\S*) import", ABACUS.read_text(), re.MULTILINE))
    assert doors == {"axcore", "axcore.toolchain"}
