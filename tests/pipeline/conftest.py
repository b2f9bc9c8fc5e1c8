"""The shared checkpoint and bundle."""

from ..bundles import axcore_command, bundle, checkpoint, converted, own_cache, own_checkpoint

__all__ = ["axcore_command", "bundle", "checkpoint", "converted", "own_cache", "own_checkpoint"]
