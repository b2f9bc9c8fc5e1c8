"""A language model to damage."""

from ..runtime.conftest import toy

__all__ = ["toy"]
