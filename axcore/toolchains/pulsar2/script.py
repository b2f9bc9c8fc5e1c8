"""``build.sh``: the commands of a bundle for people, and for machines without axcore."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..turns import lock_name
from .chips import Chip
from .commands import (
    GENERATIONS,
    LLM_STEP,
    axmodel_file,
    graph_command,
    llm_flags,
    output_folder,
    variables,
)
from .tool import NAME

if TYPE_CHECKING:
    from ..contract import BuildRequest, GraphFile

_HEAD = """\
#!/usr/bin/env bash
# Builds {model} for {chip} ({npu_mode}): the files beside this script become .axmodel files.
#
#   ./build.sh
#   PULSAR2="docker run --rm --init -v FOLDER:FOLDER -w FOLDER IMAGE pulsar2" ./build.sh
#
# A container must see this folder and the checkpoint under the paths they have here.
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"

PULSAR2=${{PULSAR2:-pulsar2}}
CHECKPOINT=${{CHECKPOINT:-{checkpoint}}}
eval "pulsar2=($PULSAR2)" # so that quotes in PULSAR2 count

stop() {{
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit 1
}}
command -v "${{pulsar2[0]}}" >/dev/null ||
  stop "${{pulsar2[0]}} is not on PATH" 'install Pulsar2, or set PULSAR2 to what starts it'

# One at a time on a machine, `axcore build` included: two at once were seen to leave broken models.
lock=${{TMPDIR:-/tmp}}/{lock}
[[ -e $lock || -L $lock ]] || (umask 0 && set -o noclobber && : >"$lock") 2>/dev/null || true
if command -v flock >/dev/null && [[ -f $lock && -r $lock && ! -L $lock ]]; then
  exec 9<"$lock"
  flock --nonblock 9 || {{
    echo "waiting for another Pulsar2 on this machine; the lock is $lock" >&2
    flock 9
  }}
else
  echo "warning: nothing keeps another Pulsar2 from running at the same time" >&2
fi
"""

_GRAPH = """
# {stem}
[[ -f {archive} ]] ||
  stop {missing} \\
    'run axcore convert again with --images'
mkdir -p {folder}
"${{pulsar2[@]}}" {command}
mv -f {output} .
"""

_LLM = """
# The language model; the builder's name and flags changed with Pulsar2 6.0
mkdir -p {folder}
rm -f {folder}/*.axmodel
usage=$("${{pulsar2[@]}}" {newer} -h 2>&1 || true)
if [[ $usage == *{mark}* ]]; then
  "${{pulsar2[@]}}" {newer} --input_path "$CHECKPOINT" {newer_flags}
else
  "${{pulsar2[@]}}" {older} --input_path "$CHECKPOINT" {older_flags}
fi
mv -f {folder}/*.axmodel .
"""


def build_script(request: BuildRequest) -> str:
    """Return a bash script that builds everything in `request`, wherever the bundle lies."""
    chip = Chip.of(request.options)
    head = _HEAD.format(
        model=request.model,
        chip=chip.name,
        npu_mode=chip.npu_mode,
        checkpoint=shlex.quote(request.checkpoint),
        lock=lock_name(NAME),
    )
    graphs = [_graph_part(graph, request) for graph in request.graphs]
    return "".join([head, *graphs, _remarks(request), _llm_part(request)])


def _graph_part(graph: GraphFile, request: BuildRequest) -> str:
    missing = f"{graph.archive} is not here, so there are no samples to quantize {graph.stem} with"
    return _GRAPH.format(
        stem=graph.stem,
        archive=shlex.quote(graph.archive),
        missing=shlex.quote(missing),
        folder=shlex.quote(output_folder(graph.stem)),
        command=shlex.join(graph_command(graph, request)),
        output=shlex.quote(f"{output_folder(graph.stem)}/{axmodel_file(graph)}"),
    )


def _remarks(request: BuildRequest) -> str:
    lines = [f"# {line}" for note in request.llm.notes for line in note.splitlines()]
    exported = variables(request)
    if exported:
        lines.append("# A container sees these only through `docker run -e NAME`")
    lines += [f"export {name}={shlex.quote(text)}" for name, text in exported.items()]
    return "".join(f"{line}\n" for line in ["", *lines]) if lines else ""


def _llm_part(request: BuildRequest) -> str:
    newer, older = GENERATIONS
    return _LLM.format(
        folder=output_folder(LLM_STEP),
        newer=newer,
        older=older,
        mark=GENERATIONS[newer],
        newer_flags=shlex.join(llm_flags(newer, request)),
        older_flags=shlex.join(llm_flags(older, request)),
    )
