"""The conformance test: the laws of the plugin contract, tried on a family one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import AxcoreError
from . import conversion, declared, prompts, running
from .trial import Law, NotApplicable, Trial

if TYPE_CHECKING:
    from pathlib import Path

    from ..plugins import Registry
    from .trial import Oracle

Status = Literal["passed", "failed", "not applicable"]

LAWS: tuple[Law, ...] = (*declared.LAWS, *conversion.LAWS, *prompts.LAWS, *running.LAWS)
"""Every law, in the order in which they are tried."""


@dataclass(frozen=True)
class Verdict:
    """What a law makes of a family.

    Attributes:
        law: Its name.
        status: What came of it.
        reason: Why it failed, or does not apply.
        seconds: How long it took.
    """

    law: str
    status: Status
    reason: str = ""
    seconds: float = 0.0


def check_family(
    family: str,
    *,
    out: Path,
    model: str | None = None,
    registry: Registry | None = None,
    data: Sequence[Path] = (),
    oracle: Oracle | None = None,
    build: bool = True,
    tasks: Sequence[str] = (),
) -> None:
    """Check that a family keeps the contract: every law of `LAWS`, in order.

    One model is converted in every task; in the first it is built, asked and packaged. The card
    needs `layout.tensors`, so that a checkpoint can be fabricated.

    Args:
        family: The plugin's entry-point name.
        out: An empty folder, for the checkpoint and the bundles.
        model: Id of the model; None takes the family's first.
        registry: The plugins; None finds the installed ones.
        data: Arrays to calibrate with, for components that take no images.
        oracle: The model's own class: takes the fabricated checkpoint, a prompt and a number of
            tokens, and returns the likeliest answer (see `transformers_answers`). None takes the
            function `oracle` of the module of that name in the family's package.
        build: Whether layer models are built and asked. Leave it out only where other tests hold
            answers, and building a model of the family takes long.
        tasks: Those to check, where tasks are the same graph; empty for all.

    Raises:
        AssertionError: A law is broken; the message says how.
        AxcoreError: The conversion itself fails.
    """
    trial = Trial.of(family, out, model, registry, data=data, oracle=oracle, tasks=tasks)
    try:
        passed = set[str]()
        for law in LAWS:
            if law is running.BUILDS and not build:
                continue
            if passed.issuperset(law.needs):  # one that failed has raised
                with suppress(NotApplicable):
                    law.check(trial)
                    passed.add(law.name)
    finally:
        trial.close()


def judge(trial: Trial) -> Iterator[Verdict]:
    """Try every law, whatever came of those before it, and yield the verdicts."""
    passed: set[str] = set()
    try:
        for law in LAWS:
            verdict = _try(law, trial, passed)
            if verdict.status == "passed":
                passed.add(law.name)
            yield verdict
    finally:
        trial.close()


def _try(law: Law, trial: Trial, passed: set[str]) -> Verdict:
    started, reason = time.perf_counter(), ""
    status: Status = "failed"
    try:
        if missing := [name for name in law.needs if name not in passed]:
            raise NotApplicable(f"not tried, because of: {missing[0]}")
        law.check(trial)
        status = "passed"
    except NotApplicable as error:
        status, reason = "not applicable", str(error)
    except AxcoreError as error:
        reason = f"{error}\n  {error.hint}" if error.hint else str(error)
    except AssertionError as error:
        reason = str(error)
    except Exception as error:  # whatever a stranger's code raises
        reason = f"{type(error).__name__}: {error}"
    return Verdict(law.name, status, reason, time.perf_counter() - started)
