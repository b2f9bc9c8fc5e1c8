"""The main job on what comes with axcore: a fabricated checkpoint and real photographs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import typer

from axcore import Registry
from axcore.calibration import embedded_pictures
from axcore.pipeline.job import fabricated_folder

MODEL = "qwen2.5-vl-3b"
OUT = Path("demo-bundle")
CHECKPOINT_GB = 8
BUNDLE_GB = 8  # twice its size: the files of an earlier run lie beside the new ones for a while
MEMORY_GB = 5

EXPLANATION = """
Done. In {out}/ there is now everything that a build for the board needs:
  {graph:38}  the vision tower as ONNX; open it in Netron
  {calibration:38}  what the tower sees of each photograph
  {manifest:38}  every file with its checksum, and how far ONNX is from PyTorch
  {build:38}  the exact Pulsar2 commands
Run `{axcore} plan {model}` to see what a conversion will do, `{axcore} --help` for the rest.
"""


def main() -> int:
    """Convert and lint, then say what to look at; the exit code is that of what failed."""
    pictures = str(embedded_pictures()[0].parent)
    code = axcore("convert", MODEL, "--weights", weights(), "--images", pictures, "-o", str(OUT))
    code = code or axcore("lint", str(OUT))
    if code == 0:
        explain()
    return code


def weights() -> str:
    """Return the real size where disk and memory hold it, else the tiny one, saying why."""
    cache = fabricated_folder(Registry().find(MODEL).card, "full")
    needed = BUNDLE_GB if cache.is_dir() else BUNDLE_GB + CHECKPOINT_GB
    disk = min(free_gb(Path.cwd()), free_gb(cache))
    memory = psutil.virtual_memory().available / 1e9
    if disk < needed or memory < MEMORY_GB:
        typer.echo(f"The real size needs {needed} GB of disk and {MEMORY_GB} GB of memory;")
        typer.echo(
            f"{disk:.0f} GB and {memory:.0f} GB are free. A tiny model of the same layout it is."
        )
        return "random-tiny"
    typer.echo(
        f"Converting {MODEL} at its real size. Its checkpoint is fabricated: 7.5 GB of random"
    )
    typer.echo(f"weights in {cache}, kept for the next time.")
    return "random-full"


def free_gb(path: Path) -> float:
    """Return the free disk space where `path` is or would be."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free / 1e9


def axcore(*arguments: str) -> int:
    """Run the command of the environment this script runs in, and return its exit code."""
    typer.echo(f"\n$ axcore {' '.join(arguments)}")
    return subprocess.run([sys.executable, "-m", "axcore", *arguments], check=False).returncode


def explain() -> None:
    """Say what to look at."""
    graph = next(OUT.glob("*.onnx")).name
    samples = next(path for path in sorted(OUT.glob("calib_*")) if path.is_dir()).name
    typer.echo(
        EXPLANATION.format(
            out=OUT,
            graph=graph,
            calibration=f"{samples}/*.png",
            manifest="axcore.json",
            build="build.sh",
            axcore=os.path.relpath(Path(sys.executable).with_name("axcore")),
            model=MODEL,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
