"""Building a bundle: one step per graph, then the language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ToolchainError
from ..state import Finished, State
from .commands import (
    BUILD_FOLDER,
    LLM_STEP,
    axmodel_file,
    config_file,
    graph_command,
    llm_flags,
    output_folder,
)
from .tool import Tool, run_logged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...progress import Progress
    from ...types import BuildRequest, GraphFile


@dataclass(frozen=True)
class Step:
    """One run of the tool.

    Attributes:
        name: Names its folder and log under ``build/``.
        words: The whole command.
        inputs: Files it reads; a change of any makes the step run again.
        promised: Given the folder the tool has filled, the names it must hold.
        environment: Variables the tool must see.
    """

    name: str
    words: list[str]
    inputs: list[Path]
    promised: Callable[[Path], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


class Build:
    """A bundle being built by a tool."""

    def __init__(self, bundle: Path, request: BuildRequest, tool: Tool, progress: Progress) -> None:
        self._bundle = bundle
        self._request = request
        self._tool = tool
        self._progress = progress
        self._state_file = bundle / BUILD_FOLDER / "state.json"
        self._state = State.load(self._state_file)

    def run(self) -> list[Path]:
        """Run what is not finished and return all files made.

        Raises:
            ToolchainError: A file is missing, or a step failed or left files out.
        """
        steps = [self._graph_step(graph) for graph in self._request.graphs]
        steps.append(self._llm_step())
        for note in self._request.llm.notes:
            self._progress.warn(note)
        made: list[Path] = []
        with self._progress.task("build", len(steps), "steps") as task:
            for step in steps:
                made += self._finish(step)
                task.advance()
        return made

    def _graph_step(self, graph: GraphFile) -> Step:
        onnx, config, weights, samples = (
            self._bundle / name
            for name in (
                f"{graph.stem}.onnx",
                config_file(graph),
                f"{graph.stem}.onnx.data",
                graph.archive,
            )
        )
        again = "run `axcore convert` again"
        _require(onnx.is_file(), graph.stem, onnx, again)
        _require(config.is_file(), graph.stem, config, again)
        _require(samples.is_file(), graph.stem, samples, f"{again} with --images")
        return Step(
            name=graph.stem,
            words=self._tool.command(graph_command(graph, self._request), {}),
            inputs=[onnx, config, samples, *([weights] if weights.is_file() else [])],
            promised=lambda _: [axmodel_file(graph)],
        )

    def _llm_step(self) -> Step:
        request, generation = self._request, self._tool.generation
        checkpoint = Path(request.checkpoint)
        again = "run `axcore convert` again with --checkpoint where it is now"
        _require(checkpoint.is_dir(), LLM_STEP, checkpoint, again)
        arguments = [generation, "--input_path", str(checkpoint), *llm_flags(generation, request)]
        return Step(
            name=LLM_STEP,
            words=self._tool.command(arguments, request.llm.environment),
            inputs=sorted(path for path in checkpoint.iterdir() if path.is_file()),
            promised=self._llm_files,
            environment=request.llm.environment,
        )

    def _llm_files(self, folder: Path) -> list[str]:
        chunk, layers = self._request.llm.prefill_len, self._request.decoder_layers
        first = f"_p{chunk}_l0_together.axmodel"
        # The tool prefixes its files with a type name that differs between its versions.
        types = [path.name.removesuffix(first) for path in folder.glob(f"*{first}")]
        kind = types[0] if types else "*"
        names = [f"{kind}_p{chunk}_l{layer}_together.axmodel" for layer in range(layers)]
        return [*names, f"{kind}_post.axmodel"]

    def _finish(self, step: Step) -> list[Path]:
        self._progress.say(f"{step.name}: comparing {len(step.inputs)} files with the last build")
        key = self._state.key(step.words, step.environment, self._tool.version, step.inputs)
        # Hashing a checkpoint takes a while; it must not be lost when the step fails.
        self._state.save(self._state_file)
        done = self._state.outputs_of(step.name, key, self._bundle)
        if done is not None:
            self._progress.say(f"{step.name}: already built")
            return done
        return self._keep(step.name, key, self._run(step))

    def _run(self, step: Step) -> list[Path]:
        folder = self._bundle / output_folder(step.name)
        # Made by us, so that what a container writes as root can still be moved out of it.
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.axmodel"):
            stale.unlink()
        log = folder.with_name(f"{step.name}.log")
        self._progress.say(f"{step.name}: building, log in {log}")
        run_logged(step.name, step.words, self._bundle, step.environment, log, self._progress)
        made = [folder / name for name in step.promised(folder)]
        if missing := [path.name for path in made if not path.is_file()]:
            raise ToolchainError(
                f"build step `{step.name}` exited with 0, but left out {len(missing)} of "
                f"{len(made)} files\n  first missing: {missing[0]}\n  log: {log}",
                hint="look in the log for what the tool skipped",
            )
        return made

    def _keep(self, step: str, key: str, made: list[Path]) -> list[Path]:
        """Move files to the top of the bundle and note them; those of an older build go."""
        older = self._state.steps.get(step)
        sizes = {path.name: path.stat().st_size for path in made}
        for path in made:
            path.replace(self._bundle / path.name)
        for name in set(older.outputs if older else ()) - set(sizes):
            (self._bundle / name).unlink(missing_ok=True)
        self._state.steps[step] = Finished(key=key, outputs=sizes)
        self._state.save(self._state_file)
        return [self._bundle / name for name in sizes]


def _require(there: bool, step: str, path: Path, remedy: str) -> None:
    if not there:
        raise ToolchainError(f"build step `{step}` cannot begin\n  missing: {path}", hint=remedy)
