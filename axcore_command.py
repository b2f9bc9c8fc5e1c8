"""The command `axcore`, beside the package so that nothing is imported before it begins."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


def main() -> None:
    """Run `axcore`; Ctrl-C shows no traceback, not even while modules are being imported."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from axcore.cli import main as run

    signal.signal(signal.SIGINT, before)
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
