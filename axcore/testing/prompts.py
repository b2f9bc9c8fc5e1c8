"""Laws of prompts: prepared on boards, where only a few small packages are, of whatever is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import Bundle
from .conversion import CONVERTS
from .declared import run_python
from .trial import Law, NotApplicable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..plugins import Registry
    from .trial import Trial

    Facts = dict[str, Any]

TEXT, ONE, OTHER, TWO, TURN = (
    "text alone",
    "one picture",
    "another picture",
    "two pictures",
    "a second turn",
)
_BOARD = Path(__file__).with_name("board.py")


def check_prompt(bundle: Path, registry: Registry) -> None:
    """Check that the prompt of a converted model is prepared as a board needs it.

    It needs no package that a board lacks: none of them can be imported meanwhile. What a user
    types stays text: the tokenizer's special tokens, and those that the family writes, become none
    of their ids. A role that contains such a token is refused, or becomes none either.

    Args:
        bundle: The bundle; its language model need not be built.
        registry: The plugins, the model's family among them.

    Raises:
        AssertionError: `prepare_prompt` failed, or broke one of these rules.
    """
    found = _on_board(bundle, registry)
    for place in ("said", "role"):
        tokens = ", ".join(found.get(place, ()))
        what = "what a user types" if place == "said" else "a role"
        assert not tokens, (
            f"{what} becomes control tokens: {tokens}; give `encode_prompt` texts as they are, and"
            " only what the family writes as `Control`"
        )


def _on_board(bundle: Path, registry: Registry, *wanted: str) -> Facts:
    family = registry.plugins[registry.of_bundle(Bundle.open(bundle).manifest.model).family]
    code = _BOARD.read_text(encoding="utf-8")
    done = run_python(code, str(bundle), family.key, family.module, *wanted)
    assert done.returncode == 0, done.stderr
    found: Facts = json.loads(done.stdout)
    return found


def _prepared(trial: Trial) -> None:
    """Conversations of every kind, without what a board lacks."""
    if not trial.answers:
        raise NotApplicable("the family has no `prepare_prompt`, and no tokens: nothing answers")
    assert trial.card.published.tokens, (
        "the card's `published` has no `tokens`, so a fabricated checkpoint has no tokenizer and no"
        " prompt can be tried"
    )
    facts = _on_board(trial.bundle.folder, trial.registry, TEXT, ONE, OTHER, TWO, TURN)
    trial.keep("prompts", facts)
    for name in (TEXT, ONE, OTHER, TWO, TURN):
        error = facts[name].get("error")
        assert not error or _refused(facts, name), f"{name}: {error}"


def _refused(facts: Facts, name: str) -> bool:
    """Whether several pictures are more than the model takes, which it may say."""
    return name == TWO and bool(facts[name].get("refused"))


def _fits(trial: Trial) -> None:
    """Ids, positions and places are what `Prompt` says; as many places as the runs give rows."""
    for name, made in _conversations(trial):
        count = len(made["ids"])
        assert made["types"] == ["int64", "int64"], f"{name}: ids and positions are {made['types']}"
        assert made["shapes"][0] == [count], f"{name}: input_ids has the shape {made['shapes'][0]}"
        assert made["shapes"][1][1:] == [count], (
            f"{name}: position_ids has the shape {made['shapes'][1]}, for {count} ids"
        )
        for component, places in made["places"].items():
            _check_places(trial, name, made, component, places)
        pictures = sum(map(len, made["samples"].values()))
        assert bool(pictures) == (name != TEXT), f"{name}: {pictures} samples for the vision side"


def _check_places(trial: Trial, name: str, made: Facts, component: str, places: Facts) -> None:
    from ..component import heads, sources

    first = heads(sources(trial.whole.components))
    rows = {item.name: item.rows for item in trial.whole.components}
    assert component in rows, f"{name}: `vision_rows` names no component: `{component}`"
    runs = len(made["samples"].get(first[component], ()))
    found = [len(run) for run in places["runs"]]
    expected = runs * rows[component]
    fits = (
        found == [expected]
        if places["whole"]
        else len(found) == runs and all(one <= rows[component] for one in found)
    )
    assert fits, (
        f"{name}: places for {found} rows of `{component}`, which runs {runs} times and gives"
        f" {rows[component]} rows each time"
    )
    taken = [place for run in places["runs"] for place in run]
    inside = all(0 <= place < len(made["ids"]) for place in taken)
    different = inside and len(set(taken)) == len(taken)
    assert different, f"{name}: places are no different indices of the prompt"


def _markers(trial: Trial) -> None:
    """Behind every place is the one token that the family writes for a row."""
    added = set(trial.kept("prompts")["added"])
    special = dict(trial.card.published.tokens(trial.whole.job.config))  # type: ignore[misc]
    for name, made in _conversations(trial):
        for component, places in made["places"].items():
            found = {made["ids"][place] for run in places["runs"] for place in run}
            assert found <= added, (
                f"{name}: the rows of `{component}` replace ids that are no added tokens:"
                f" {sorted(found - added)}; list the marker in `published.tokens`"
            )
    assert len(set(special.values())) == len(special), "`published.tokens` gives an id to two"


def _pictures(trial: Trial) -> None:
    """Another picture gives other samples, and the pictures of a prompt keep their order."""
    facts = dict(_conversations(trial))
    for component, one in facts[ONE]["samples"].items():
        other = facts[OTHER]["samples"][component]
        assert one != other, f"two different pictures give the same samples of `{component}`"
    if TWO not in facts:
        raise NotApplicable("the model takes one picture")
    for component, both in facts[TWO]["samples"].items():
        assert len(set(both)) > 1, f"{TWO}: `{component}` gets one of them twice"


def _keeps(trial: Trial) -> None:
    """A second turn begins as the first did, so that the caches of the first serve it."""
    facts = dict(_conversations(trial))
    first, turn = facts[ONE], facts[TURN]
    runs = [run for places in first["places"].values() for run in places["runs"]]
    last = max((place for run in runs for place in run), default=0)
    kept = 0
    for one, two in zip(
        zip(first["ids"], first["positions"], strict=True),
        zip(turn["ids"], turn["positions"], strict=True),
        strict=False,
    ):
        if one != two:
            break
        kept += 1
    assert kept > last, (
        f"a second turn begins like the first for {kept} tokens, and the picture's last row is at"
        f" {last}: every turn would run all of it again"
    )
    assert first["samples"] == turn["samples"], "a second turn makes other samples of the picture"


def _conversations(trial: Trial) -> Iterator[tuple[str, Facts]]:
    facts: Facts = trial.kept("prompts")
    for name in (TEXT, ONE, OTHER, TWO, TURN):
        if not facts[name].get("error"):
            yield name, facts[name]


def _typed(trial: Trial) -> None:
    check_prompt(trial.bundle.folder, trial.registry)


PREPARED = Law(
    "prompts are prepared where torch and transformers are not", _prepared, (CONVERTS.name,)
)
FITS = Law("a prompt has as many places as its pictures have rows", _fits, (PREPARED.name,))
LAWS = (
    PREPARED,
    FITS,
    Law("each marker is one token", _markers, (FITS.name,)),
    Law("different pictures stay different", _pictures, (FITS.name,)),
    Law("a second turn keeps the caches of the first", _keeps, (FITS.name,)),
    Law("what users type becomes no control token", _typed, (PREPARED.name,)),
)
