"""A family on trial: one of its models, and what the laws make of it, each made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..discovery import located
from ..errors import AxcoreError, ContractError
from ..language_model import Prompt
from ..pipeline.job import open_job
from ..pipeline.prepared import Prepared, prepare
from ..plugins import Registry
from ..progress import Silent
from ..request import Options, Request

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..discovery import PluginInfo
    from ..model_card import ModelCard
    from ..runtime.runner import Runner

ORACLE = "oracle"
"""Module of a family's package, and the function in it, that answers as the model's class does."""

Oracle = Callable[[Path, Prompt, int], "list[int]"]
"""Takes a checkpoint, a prompt and a number of tokens; returns the likeliest answer's tokens."""


class NotApplicable(Exception):
    """A law does not concern a family; the message is the reason."""


@dataclass(frozen=True)
class Law:
    """A rule of the contract.

    Attributes:
        name: A short sentence: what is so where the law is kept.
        check: Raises AssertionError or an AxcoreError where it is broken, and `NotApplicable`.
        needs: Names of laws without which this one cannot be tried.
    """

    name: str
    check: Callable[[Trial], None]
    needs: tuple[str, ...] = ()


@dataclass
class Trial:
    """One model of a family, on a tiny checkpoint with random weights.

    Attributes:
        registry: The plugins.
        family: The plugin's name.
        card: The model.
        out: Where everything is written.
        oracle: The model's own class; None where there is none. `of` takes that of the family's
            package: its function `oracle` in a module of that name.
        data: Arrays to calibrate with, for components that take no images.
        tasks: Those that are converted; `of` takes all where none is named.
    """

    registry: Registry
    family: str
    card: ModelCard
    out: Path
    oracle: Oracle | None = None
    data: Sequence[Path] = ()
    tasks: Sequence[str] = ()
    _made: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        family: str,
        out: Path,
        model: str | None = None,
        registry: Registry | None = None,
        **others: Any,
    ) -> Trial:
        """Find the model; None takes the family's first.

        Raises:
            ContractError: The family is set aside, or has no such model.
        """
        registry = registry or Registry()
        cards = [entry.card for entry in registry.entries if entry.family == family]
        for problem in registry.problems:
            if problem.plugin.name == family:
                raise ContractError(
                    f"plugin {problem.plugin} was set aside: {problem.error}", hint=problem.remedy
                )
        fitting = [card for card in cards if model in (None, card.id)]
        if not fitting:
            raise ContractError(
                f"family `{family}` has no model `{model or 'at all'}`",
                hint=f"its models: {', '.join(card.id for card in cards) or 'none'}",
            )
        trial = cls(registry, family, fitting[0], out, **others)
        trial.tasks = trial.tasks or tuple(trial.card.profiles)
        if trial.oracle is None:
            trial.oracle = _oracle_of(trial.plugin.module.partition(":")[0])
        return trial

    @property
    def plugin(self) -> PluginInfo:
        """Where the family comes from."""
        return self.registry.plugins[self.family]

    @property
    def cards(self) -> list[ModelCard]:
        """All models of the family."""
        return [entry.card for entry in self.registry.entries if entry.family == self.family]

    @property
    def answers(self) -> bool:
        """Whether the family says that its models answer."""
        hooks = self.registry.hooks_of(self.family)
        return "prepare_prompt" in hooks or self.card.published.tokens is not None

    @cached_property
    def checkpoint(self) -> Path:
        """The fabricated checkpoint."""
        from ..checkpoint import fabricate

        return fabricate(self.card, "tiny", self.out / "checkpoint")

    def prepared(
        self, options: Options, card: ModelCard | None = None, *, vision_only: bool = False
    ) -> Prepared:
        """Run the hooks that describe a model; `prepare` checks what they return."""
        from ..checkpoint import fabricate

        model, checkpoint = card or self.card, self.checkpoint
        if model is not self.card:
            checkpoint = fabricate(model, "tiny", self.out / "models" / model.id)
        request = Request.of(
            model.id,
            family=self.family,
            checkpoint=checkpoint,
            options=options,
            vision_only=vision_only,
        )
        return prepare(request, self.registry, open_job(request, self.registry, Silent()))

    def keep(self, name: str, made: Any) -> None:
        """Keep what a law made for those that need it."""
        self._made[name] = made

    def kept(self, name: str) -> Any:
        """Return what a law kept."""
        return self._made[name]

    @property
    def task(self) -> str:
        """The first task, in which the model is built and run."""
        return self.tasks[0]

    @property
    def bundle(self) -> Bundle:
        """The conversion in the first task; its language model is built by a law."""
        found: Bundle = self.kept(f"bundles {self.task}")[0]
        return found

    @property
    def whole(self) -> Prepared:
        """What the first task's conversion was made of."""
        found: Prepared = self.kept(f"whole {self.task}")
        return found

    @cached_property
    def runner(self) -> Runner:
        """The built model, ready to answer."""
        from ..runtime.runner import Runner

        return Runner.open(self.bundle.folder, self.registry)

    def close(self) -> None:
        """Close what is open."""
        for name, made in self._made.items():
            if name.startswith(("whole ", "cut ")):
                with suppress(AxcoreError, OSError):
                    made.job.checkpoint.close()


def _oracle_of(package: str) -> Oracle | None:
    name = f"{package}.{ORACLE}"
    try:
        found: Oracle = getattr(import_module(name), ORACLE)
    except ModuleNotFoundError as error:
        if error.name == name or "is not a package" in str(error):
            return None
        raise ContractError(f"{name} cannot be imported: {located(error)}") from error
    except Exception as error:  # whatever a stranger's code raises
        raise ContractError(f"{name} cannot be used: {located(error)}") from error
    return found
