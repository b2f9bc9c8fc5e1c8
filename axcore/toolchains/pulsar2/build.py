"""The runs of the tool for a bundle: one per graph, then the language model."""

from __future__ import annotations

import glob
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ToolchainError
from ...foreign import read_bytes
from ...limits import CONFIG_BYTES
from ..tool import Run, graph_files, required
from .commands import LLM_STEP, axmodel_file, config_file, graph_command, llm_flags, variables
from .results import GraphResult, read_result, table_of
from .schema import BuildConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...progress import Progress
    from ..contract import BuildRequest, GraphFile
    from .commands import Generation

_AGAIN = "run `axcore convert` again"


_ACCEPT = "run the same command again with --accept-faults yes: what is built is kept"


def runs_of(
    bundle: Path, request: BuildRequest, generation: Generation, progress: Progress
) -> list[Run]:
    """Return what a tool with the language-model builder `generation` has to do.

    Raises:
        ToolchainError: A file that a step reads is missing.
    """
    graphs = [_graph_step(bundle, graph, request, progress) for graph in request.graphs]
    return [*graphs, _llm_step(bundle, request, generation)]


def accepts_faults(request: BuildRequest) -> bool:
    """Whether a build is called good although its results do not hold."""
    return request.options.get("accept-faults") == "yes"


def check_results(reports: Mapping[str, Path], request: BuildRequest, progress: Progress) -> None:
    """Show what graphs and language model came to.

    Args:
        reports: Name of every step to the file of its `GraphResult`.
        request: What was built.
        progress: Where the table goes.

    Raises:
        ToolchainError: A result does not hold, and that is not accepted.
    """
    results = {name: GraphResult.open(path) for name, path in reports.items()}
    for line in table_of(results) if results else ():
        progress.say(line)
    faults = [f"\n  {name}: {text}" for name, one in results.items() for text in one.faults]
    if faults and not accepts_faults(request):
        raise ToolchainError(
            f"everything is built, but {len(faults)} results do not hold{''.join(faults)}",
            hint="choose another precision or other calibration images, convert and build again;"
            f" or, where answers on the board are good all the same, {_ACCEPT}",
        )


def _examine(
    name: str,
    config: Path,
    accepted: bool,
    progress: Progress,
    output: Path,
    log: Path,
    since: float,
) -> dict[str, Any]:
    result = read_result(log, output, _config(config), since)
    if (result.subgraphs or 1) > 1 and not accepted:
        raise ToolchainError(
            f"build step `{name}` left a model of {result.subgraphs} subgraphs\n  log: {log}",
            hint="`axcore lint` names operators that the NPU does not run; loading such a model has"
            " killed the loader of a card, so it is no part of the bundle unless you build with"
            " --accept-faults yes",
        )
    for fault in result.faults:
        progress.warn(f"{name}: {fault}")
    return asdict(result)


def _config(path: Path) -> BuildConfig | None:
    """Return what was asked for; None for a file that Pulsar2 takes and axcore does not."""
    try:
        return BuildConfig.model_validate_json(read_bytes(path, CONFIG_BYTES))
    except (OSError, ValueError):  # which pydantic's errors are
        return None


def _graph_step(bundle: Path, graph: GraphFile, request: BuildRequest, progress: Progress) -> Run:
    name, axmodel = graph.stem, axmodel_file(graph)
    files = graph_files(bundle, graph)
    config = required(name, bundle / config_file(graph), _AGAIN)
    files += [config]
    files += [required(name, bundle / graph.archive, f"{_AGAIN} with --images")]
    return Run(
        name,
        graph_command(graph, request),
        files,
        lambda _: {axmodel: glob.escape(axmodel)},
        examine=partial(_examine, name, config, accepts_faults(request), progress),
    )


def _llm_step(bundle: Path, request: BuildRequest, generation: Generation) -> Run:
    checkpoint = bundle / request.checkpoint  # an absolute one stays
    required(LLM_STEP, checkpoint / "config.json", f"{_AGAIN} with --checkpoint where it is now")
    return Run(
        name=LLM_STEP,
        arguments=[generation, "--input_path", request.checkpoint, *llm_flags(generation, request)],
        inputs=sorted(path for path in checkpoint.iterdir() if path.is_file()),
        promised=lambda folder: _llm_files(folder, request),
        environment=variables(request),
        # What a log says of it is of single layers; time and memory are of the whole.
        examine=lambda _output, _log, _since: asdict(GraphResult()),
    )


def _llm_files(folder: Path, request: BuildRequest) -> dict[str, str]:
    chunk, layers = request.llm.prefill_len, range(request.decoder_layers)
    first = f"_p{chunk}_l0_together.axmodel"
    # The tool prefixes its files with a type name that differs between its versions.
    types = [path.name.removesuffix(first) for path in folder.glob(f"*{first}")]
    kind = types[0] if len(types) == 1 else "*"
    names = [f"{kind}_p{chunk}_l{layer}_together.axmodel" for layer in layers]
    return {name: name for name in [*names, f"{kind}_post.axmodel"]}
