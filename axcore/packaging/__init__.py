"""Folders for a board, made from a bundle that was built."""

from .board import RUNTIMES, Runtime, package

__all__ = ["RUNTIMES", "Runtime", "package"]
