"""Package a built bundle as a folder for a board."""

from .board import RUNTIMES, package
from .target import Runtime

__all__ = ["RUNTIMES", "Runtime", "package"]
