"""Laws of what a family declares: cards, names, discovery, and its hooks for every choice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ..catalogue import recognises
from ..declared import check_cards
from ..errors import AxcoreError, BudgetError, UnsupportedProfile
from ..request import Options
from .trial import Law, NotApplicable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from ..model_card import ModelCard
    from .trial import Trial

_DISCOVER = """
import json, sys
from importlib.metadata import EntryPoint
from axcore import Registry
from axcore.discovery import HEAVY

registry = Registry([EntryPoint(*sys.argv[1:], "axcore")])
registry.entries
print(json.dumps({
    "problems": [problem.error for problem in registry.problems],
    "remarks": [remark.text for remark in registry.remarks],
    "imported": sorted(sys.modules.keys() & set(HEAVY)),
}))
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own that finds what this one does."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )


def _types(trial: Trial) -> None:
    """The registry sets a family with others aside; here by the card's own field."""
    check_cards(trial.family, trial.cards)


def _names(trial: Trial) -> None:
    clashes = [
        f"{remark.subject}: {remark.text}"
        for remark in trial.registry.remarks
        if remark.subject.startswith(("model name ", "plugin name "))
        and f"`{trial.family}`" in remark.text
    ]
    assert not clashes, "others have these names too\n  " + "\n  ".join(clashes)


def _discovery(trial: Trial) -> None:
    done = run_python(_DISCOVER, trial.plugin.key, trial.plugin.module)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    said = [*found["problems"], *found["remarks"]]
    said += [f"imports {name} while it is discovered" for name in found["imported"] if not said]
    assert not said, "; ".join(said)


def _recognised(trial: Trial) -> None:
    """Its own configs are recognised as the model that they are of; those of others are not."""
    own = [card for card in trial.cards if card.published.config]
    if not own:
        raise NotApplicable("no card has a published config")
    for card in own:
        config = card.published.config
        entry = trial.registry.recognise(config, f"the published config of `{card.id}`")
        assert (entry.family, entry.card.id) == (trial.family, card.id), (
            f"the config of `{card.id}` is taken for `{entry.family}/{entry.card.id}`;"
            " `recognises` of the card tells models of one architecture apart"
        )
    for entry in trial.registry.entries:
        config = entry.card.published.config
        if entry.family != trial.family and config:
            for card in trial.cards:
                named = (config.get("architectures") or [None])[0]
                assert named not in card.architectures or not recognises(card, config), (
                    f"`{card.id}` recognises the config of `{entry.family}/{entry.card.id}`"
                )


def _every_choice(trial: Trial) -> None:
    """Every model, task and choice, and the vision side alone: hooks alone, nothing is traced."""
    cards = [card for card in trial.cards if card.layout.tensors and card.published.config]
    for card in cards:
        for index, options in enumerate(_options(card)):
            for vision_only in (False, True)[: 2 - bool(index)]:
                try:
                    made = trial.prepared(options, card, vision_only=vision_only)
                except (BudgetError, UnsupportedProfile):
                    continue  # other lengths or sizes are needed for it, as the error says
                except AxcoreError as error:
                    flag = " --vision-only" if vision_only else ""
                    error.message = f"`{card.id}`, {_spelt(options)}{flag}: {error.message}"
                    error.args = (error.message,)
                    raise
                made.job.checkpoint.close()


def _options(card: ModelCard) -> Iterator[Options]:
    """Yield every task, and in the first every value of every choice, one at a time."""
    first = Options(task=next(iter(card.profiles)))
    for task in card.profiles:
        yield Options(task=task)
    for name, choice in card.choices.items():
        for value in choice.values[1:]:
            yield replace(first, choices={name: value})


def _spelt(options: Options) -> str:
    choices: Mapping[str, Any] = options.choices
    return f"task `{options.task}`" + "".join(f" --{k} {v}" for k, v in choices.items())


LAWS = (
    Law("every field of a card has its declared type", _types),
    Law("no other family has its names", _names),
    Law("discovery is quiet and imports nothing heavy", _discovery),
    Law("its own configs are recognised, and nobody else's", _recognised),
    Law("every model, task and choice is described, the vision side alone too", _every_choice),
)
