"""Check graphs after the fact, against the table of any target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bundle import Bundle
from ..choices import resolve
from ..errors import UsageError
from ..request import Request
from .job import find_toolchain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..graph.lint import Finding
    from ..plugins import Registry


def lint_target(
    path: Path, name: str | None, options: Mapping[str, str], registry: Registry
) -> list[Finding]:
    """Check an ONNX file or every graph of a bundle; see `axcore.lint`."""
    graphs, recorded = [path], dict[str, str]()
    if path.is_dir():
        bundle = Bundle.open(path)
        graphs, name = bundle.graphs, name or bundle.manifest.toolchain
        if name == bundle.manifest.toolchain:
            recorded.update(bundle.build_request.options)
    toolchain = find_toolchain(registry, name or Request.toolchain)
    owner = f"toolchain `{toolchain.name}`"
    target = toolchain.target(resolve(owner, toolchain.options, {**recorded, **options}))
    if target.operators is None:
        known = [known for known, one in toolchain.targets.items() if one.operators]
        raise UsageError(
            f"no operator table is published for {target.name}",
            hint=f"{owner} has tables of {', '.join(known)}" if known else "",
        )
    return [finding for graph in graphs for finding in toolchain.lint(graph, target)]
