"""The checkpoint and the bundles that tests share, and the command line in this process."""

from .built import finished, impatient, own
from .bundles import (
    abacus,
    axcore_command,
    bundle,
    checkpoint,
    converted,
    hashed,
    own_checkpoint,
)
from .evaluate.answering import batched_model, model

__all__ = [
    "abacus",
    "axcore_command",
    "batched_model",
    "bundle",
    "checkpoint",
    "converted",
    "finished",
    "hashed",
    "impatient",
    "model",
    "own",
    "own_checkpoint",
]
