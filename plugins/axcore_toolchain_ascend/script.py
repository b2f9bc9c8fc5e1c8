"""``build_ascend.sh``: the commands of a bundle for people, and for machines without axcore."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from .card import Card
from .commands import atc_flags, om_file, output_folder

if TYPE_CHECKING:
    from axcore import BuildRequest, GraphFile

SCRIPT = "build_ascend.sh"

_HEAD = """\
#!/usr/bin/env bash
# Converts the vision graphs of {model} for Ascend cards: .onnx files become .om files.
#
#   SOC_VERSION=Ascend310P3 ./{script}
#   ATC="docker run --rm -v FOLDER:FOLDER -w FOLDER IMAGE atc" ./{script}
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"

ATC=${{ATC:-atc}}
SOC_VERSION=${{SOC_VERSION:-{soc_version}}}
PRECISION_MODE=${{PRECISION_MODE:-{precision_mode}}}
eval "atc=($ATC)" # so that quotes in ATC count

stop() {{
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit 1
}}
command -v "${{atc[0]}}" >/dev/null ||
  stop "${{atc[0]}} is not on PATH" "install CANN and source its set_env.sh, or set ATC"
[[ -n $SOC_VERSION ]] ||
  stop "SOC_VERSION is not set" "Ascend and the name that npu-smi info prints, e.g. Ascend310P3"
"""

_GRAPH = """
# {stem}
mkdir -p {folder}
rm -f {folder}/*.om
"${{atc[@]}}" {flags}
mv -f {folder}/*.om {output}
"""

_VARIABLES = Card("$SOC_VERSION", "$PRECISION_MODE")


def build_script(request: BuildRequest, card: Card) -> str:
    """Return a bash script that converts every graph of `request`, wherever the bundle lies."""
    head = _HEAD.format(
        model=request.model,
        script=SCRIPT,
        soc_version=card.soc_version,
        precision_mode=card.precision_mode,
    )
    return "".join([head, *map(_graph_part, request.graphs)])


def _graph_part(graph: GraphFile) -> str:
    return _GRAPH.format(
        stem=graph.stem,
        folder=shlex.quote(output_folder(graph)),
        flags=" ".join(map(_quoted, atc_flags(graph, _VARIABLES))),
        output=shlex.quote(om_file(graph)),
    )


def _quoted(word: str) -> str:
    variable = word.endswith((_VARIABLES.soc_version, _VARIABLES.precision_mode))
    return f'"{word}"' if variable else shlex.quote(word)
