"""The command line: arguments in, messages out."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from ..display import guard_output
from ..errors import AxcoreError, UsageError
from . import package, run  # noqa: F401 - they register their commands
from .app import app
from .console import data_alone
from .evaluate import evaluate_app
from .explain import explained
from .invocation import Invocation
from .plugins import plugins_app
from .quantize import quantize_app

__all__ = ["app", "main"]

app.add_typer(plugins_app, name="plugins", help="Look at the installed plugins, and write others.")
app.add_typer(quantize_app, name="quantize", help="Make the language model smaller.")
app.add_typer(evaluate_app, name="evaluate")


def main() -> None:
    """Run `axcore`: exit 0, 1 for an expected failure, 2 for a wrong request, 130 after Ctrl-C.

    Any other exception is a bug and keeps its traceback; ``AXCORE_TRACEBACK`` shows that of
    expected failures too.
    """
    guard_output()
    with Invocation() as invocation:
        try:
            with explained(), data_alone() if "--json" in sys.argv else nullcontext():
                sys.exit(app(obj=invocation, standalone_mode=False))
        except AxcoreError as error:
            if os.environ.get("AXCORE_TRACEBACK"):
                raise
            invocation.fail(error)
            sys.exit(2 if isinstance(error, UsageError) else 1)
