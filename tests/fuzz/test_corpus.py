"""Readers of foreign bytes, on all inputs that fuzzing has found of interest.

`python -m tests.fuzz` looks for more, guided by coverage; this needs no more than the corpus.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .mutations import mutated
from .targets import TARGETS, check
from .watch import watching

CORPUS = Path(__file__).with_name("corpus")
MUTATIONS = int(os.environ.get("FUZZ_EXAMPLES", "20"))
SLOW = {"planned", "bundle-used", "state"}  # a tenth of a second each


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name: str) -> None:
    """Nothing but an AxcoreError comes out, and nothing elsewhere is touched. Oracle: `check`."""
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        try:
            check(name, path.read_bytes())
        except BaseException as error:  # a panic of a library in Rust is no Exception
            raise AssertionError(f"{name} fails on {path}") from error


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW])
def test_changed_inputs_are_read_or_refused(name: str) -> None:
    """The seeds with a few changes, the same ones in every run. Oracle: as above."""
    seeds = list(TARGETS[name].seeds())
    for number in range(MUTATIONS):
        data = mutated(seeds[number % len(seeds)], number)[: TARGETS[name].most]
        try:
            check(name, data)
        except BaseException as error:
            raise AssertionError(f"{name} fails on {data[:500]!r}") from error


def test_a_target_that_misbehaves_is_noticed(tmp_path: Path) -> None:
    """A file written elsewhere while it is watched. Oracle: the name of the file."""
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in") as watch:
        (tmp_path / "in" / "fine").write_text("")
        (tmp_path / "elsewhere").write_text("")
    assert watch.seen == [f"open to write {tmp_path / 'elsewhere'}"]
