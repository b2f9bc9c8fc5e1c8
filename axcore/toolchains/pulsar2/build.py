"""The runs of the tool for a bundle: one per graph, then the language model."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from ..tool import Run, graph_files, required
from .commands import LLM_STEP, axmodel_file, config_file, graph_command, llm_flags

if TYPE_CHECKING:
    from ..contract import BuildRequest, GraphFile
    from .commands import Generation

_AGAIN = "run `axcore convert` again"


def runs_of(bundle: Path, request: BuildRequest, generation: Generation) -> list[Run]:
    """Return what a tool with the language-model builder `generation` has to do.

    Raises:
        ToolchainError: A file that a step reads is missing.
    """
    graphs = [_graph_step(bundle, graph, request) for graph in request.graphs]
    return [*graphs, _llm_step(bundle, request, generation)]


def _graph_step(bundle: Path, graph: GraphFile, request: BuildRequest) -> Run:
    name, axmodel = graph.stem, axmodel_file(graph)
    files = graph_files(bundle, graph)
    files += [required(name, bundle / config_file(graph), _AGAIN)]
    files += [required(name, bundle / graph.archive, f"{_AGAIN} with --images")]
    return Run(
        name, graph_command(graph, request), files, lambda _: {axmodel: glob.escape(axmodel)}
    )


def _llm_step(bundle: Path, request: BuildRequest, generation: Generation) -> Run:
    checkpoint = bundle / request.checkpoint  # an absolute one stays
    required(LLM_STEP, checkpoint / "config.json", f"{_AGAIN} with --checkpoint where it is now")
    return Run(
        name=LLM_STEP,
        arguments=[generation, "--input_path", request.checkpoint, *llm_flags(generation, request)],
        inputs=sorted(path for path in checkpoint.iterdir() if path.is_file()),
        promised=lambda folder: _llm_files(folder, request),
        environment=request.llm.environment,
    )


def _llm_files(folder: Path, request: BuildRequest) -> dict[str, str]:
    chunk, layers = request.llm.prefill_len, range(request.decoder_layers)
    first = f"_p{chunk}_l0_together.axmodel"
    # The tool prefixes its files with a type name that differs between its versions.
    types = [path.name.removesuffix(first) for path in folder.glob(f"*{first}")]
    kind = types[0] if len(types) == 1 else "*"
    names = [f"{kind}_p{chunk}_l{layer}_together.axmodel" for layer in layers]
    return {name: name for name in [*names, f"{kind}_post.axmodel"]}
