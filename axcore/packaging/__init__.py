"""Package a built bundle as a folder for a board."""

from .board import RUNTIMES, Runtime, package

__all__ = ["RUNTIMES", "Runtime", "package"]
