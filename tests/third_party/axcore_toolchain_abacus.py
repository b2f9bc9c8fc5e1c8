"""A toolchain of somebody else, with targets and an operator table of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axcore import Availability, Choice, UsageError, hookimpl
from axcore.toolchain import OperatorTable, Target, lint_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from axcore.toolchain import Build, BuildRequest, Finding

WOOD = OperatorTable(
    "wood",
    {"MatMul": (), "Add": (), "Softmax": ("axis: only -1",)},
    minimum_opset=11,
    remedies={"*": "count on brass"},
)
TARGETS = {"wood": Target("wood", WOOD), "brass": Target("brass")}


class Abacus:
    """Counts."""

    name = "abacus"
    options: Mapping[str, Choice] = {
        "beads": Choice(("ten", "five"), "how many on a rod"),
        "frame": Choice((), "what it is made of; wood where nothing is said"),
    }
    targets = TARGETS

    def target(self, options: Mapping[str, str]) -> Target:
        """Return the frame."""
        frame = options.get("frame", "wood")
        if frame not in TARGETS:
            raise UsageError(f"no frame is made of {frame}", hint=f"choose {' or '.join(TARGETS)}")
        return TARGETS[frame]

    def lint(self, graph: Path, target: Target) -> list[Finding]:
        """Check a graph against the table."""
        assert target.operators is not None
        return lint_model(graph, target.operators)

    def availability(self, command: str | None = None) -> Availability:
        """Say that it is here."""
        return Availability(True, "on the desk")

    def checks(self) -> dict[str, Availability]:
        """Return what else matters."""
        gone = Availability(False, "not found", "buy some oil")
        return {"oil": gone, "rods": Availability(True, "13")}

    def reads(self, request: BuildRequest, name: str) -> bool:
        """Say yes of graphs."""
        return name.endswith(".onnx")

    def prepare(self, request: BuildRequest) -> dict[str, str]:
        """Return a note of the beads."""
        return {"beads.txt": request.options["beads"]}

    def build(self, build: Build) -> None:
        """Count the nodes' bytes."""

        def count(folder: Path) -> None:
            for graph in build.request.graphs:
                size = (build.folder / f"{graph.stem}.onnx").stat().st_size
                (folder / f"{graph.stem}.count").write_text(f"{size}")

        graphs = [build.folder / f"{graph.stem}.onnx" for graph in build.request.graphs]
        build.step("count", {"graphs": graphs, "options": build.request.options}, count)


@hookimpl
def toolchains() -> list[Abacus]:
    """Register it."""
    return [Abacus()]
