"""The default `decoder`: layers and head of the architectures that ``docs/decoders.md`` lists.

A layer receives what it keeps as arguments and returns the rows to add, or the new state, so the
caller owns the caches. Parameters have the names of transformers.
"""

from .default import default_decoder

__all__ = ["default_decoder"]
