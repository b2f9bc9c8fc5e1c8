"""The shared checkpoint and bundles."""

from ..built import finished, impatient, own
from ..bundles import (
    abacus,
    axcore_command,
    bundle,
    checkpoint,
    converted,
    own_cache,
    own_checkpoint,
)
from ..runtime.conftest import toy

__all__ = [
    "abacus",
    "axcore_command",
    "bundle",
    "checkpoint",
    "converted",
    "finished",
    "impatient",
    "own",
    "own_cache",
    "own_checkpoint",
    "toy",
]
