"""Building a bundle: one step per vision graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from axcore import ToolchainError
from axcore.toolchains.state import Finished, State

from .commands import BUILD_FOLDER, atc_flags, om_file, output_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from axcore import GraphFile, Progress

    from .target import Target
    from .tool import Tool


@dataclass(frozen=True)
class Step:
    """One run of ``atc``: the graph, the whole command and the files it reads."""

    graph: GraphFile
    words: list[str]
    inputs: list[Path]


class Build:
    """A bundle whose graphs are being converted."""

    def __init__(
        self,
        bundle: Path,
        graphs: Sequence[GraphFile],
        target: Target,
        tool: Tool,
        progress: Progress,
    ) -> None:
        self._bundle = bundle
        self._graphs = graphs
        self._target = target
        self._tool = tool
        self._progress = progress
        self._state_file = bundle / BUILD_FOLDER / "state.json"
        self._state = State.load(self._state_file)

    def run(self) -> list[Path]:
        """Run what is not finished and return all files made; those of other graphs go.

        Raises:
            ToolchainError: A graph is missing, or a step failed or wrote no file.
        """
        steps = [self._step(graph) for graph in self._graphs]
        self._drop(set(self._state.steps) - {graph.stem for graph in self._graphs})
        made = []
        with self._progress.task("build", len(steps), "steps") as task:
            for step in steps:
                made += self._finish(step)
                task.advance()
        return made

    def _step(self, graph: GraphFile) -> Step:
        onnx = self._bundle / f"{graph.stem}.onnx"
        weights = onnx.with_name(f"{onnx.name}.data")
        if not onnx.is_file():
            raise ToolchainError(
                f"build step `{graph.stem}` cannot begin\n  missing: {onnx}",
                hint="run `axcore convert` again",
            )
        words = [*self._tool.words, *atc_flags(graph, self._target)]
        return Step(graph, words, [onnx, *([weights] if weights.is_file() else [])])

    def _drop(self, stale: set[str]) -> None:
        for stem in sorted(stale):
            for name in self._state.steps.pop(stem).outputs:
                (self._bundle / name).unlink(missing_ok=True)

    def _finish(self, step: Step) -> list[Path]:
        name = step.graph.stem
        key = self._state.key(step.words, {}, self._tool.version, step.inputs)
        done = self._state.outputs_of(name, key, self._bundle)
        if done is not None:
            self._progress.say(f"{name}: already built")
            return done
        path = self._bundle / om_file(step.graph)
        self._run(step).replace(path)
        self._state.steps[name] = Finished(key=key, outputs={path.name: path.stat().st_size})
        self._state.save(self._state_file)
        return [path]

    def _run(self, step: Step) -> Path:
        name, folder = step.graph.stem, self._bundle / output_folder(step.graph)
        # Made by us, so that what a container writes as root can still be moved out of it.
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.om"):
            stale.unlink()
        log = folder.with_name(f"{name}.log")
        self._progress.say(f"{name}: building, log in {log}")
        self._tool.run(name, step.words, self._bundle, log, self._progress)
        # atc adds the system to the name of a model that holds code for the host.
        made = list(folder.glob("*.om"))
        if len(made) != 1:
            raise ToolchainError(
                f"build step `{name}` exited with 0, but wrote {len(made)} .om files instead of 1\n"
                f"  folder: {folder}\n"
                f"  log: {log}",
                hint="look in the log for what atc skipped",
            )
        return made[0]
