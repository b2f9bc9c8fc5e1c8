"""The promises of every family, and what the command line does with this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axcore.testing import check_family

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Registry


def test_hooks_keep_their_promises(tmp_path: Path, registry: Registry) -> None:
    """Whole and cut in two; tasks have one graph. Oracle: the rules of the conformance kit."""
    check_family("qwen35", out=tmp_path, registry=registry, tasks=["video"], build=False)
