"""From a fabricated checkpoint to an answer about a photograph, with what comes with axcore."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import typer

from axcore import Bundle, Registry
from axcore.calibration import embedded_images
from axcore.pipeline.job import fabricated_folder

OUT = Path("demo-bundle")
IMAGES = embedded_images()[0].parent
IMAGE = IMAGES / "cat.jpg"
QUESTION = "What is in the image?"
TOKENS = 32


@dataclass(frozen=True)
class Size:
    """A model at its real size, and the room that the demo needs for it.

    Attributes:
        model: Its id.
        checkpoint_gb: Disk for the checkpoint.
        bundle_gb: Disk for the bundle: its converted files twice, as those of an earlier run lie
            beside the new ones for a while, and the layer models.
        memory_gb: For answering, which holds all weights in float32.
    """

    model: str
    checkpoint_gb: int
    bundle_gb: int
    memory_gb: int


SIZES = (Size("qwen2.5-vl-3b", 8, 15, 16), Size("internvl3.5-1b", 3, 6, 6))

CONVERTED = """
In {out}/ there is now everything that a build for the board needs:
  {graph:38}  the vision tower as ONNX; open it in Netron
  {calibration:38}  what the tower sees of each photograph
  {manifest:38}  every file with its checksum, and how far ONNX is from PyTorch
  {build:38}  the exact Pulsar2 commands
Next, the language model is built for this machine and asked about {image}.
"""
ANSWERING = """
The weights are random: the words below mean nothing. What is shown is the way to them, which is
the one on a board: image, vision graph, prompt, layer models, one token after another.
Try `{axcore} chat {out}`, `{axcore} plan {model}`, `{axcore} --help`.
"""


def main() -> int:
    """Convert, lint, build and ask; the exit code is that of what failed."""
    model, weights = choose()
    code = axcore("convert", model, "--weights", weights, "--images", IMAGES, "-o", OUT)
    code = code or axcore("lint", OUT)
    if code:
        return code
    explain()
    code = axcore("build", OUT, "--toolchain", "onnx", quiet=True)
    if code:
        return code
    command = os.path.relpath(Path(sys.executable).with_name("axcore"))
    typer.echo(ANSWERING.format(axcore=command, out=OUT, model=model), nl=False)
    return axcore("run", OUT, "--image", IMAGE, "-p", QUESTION, "--max-new-tokens", TOKENS)


def choose() -> tuple[str, str]:
    """Return the largest model that disk and memory hold and its weights, saying why."""
    memory = psutil.virtual_memory().available / 1e9
    for size in SIZES:
        cache = fabricated_folder(Registry().find(size.model).card, "full")
        needed = size.bundle_gb + (0 if cache.is_dir() else size.checkpoint_gb)
        disk = min(free_gb(Path.cwd()), free_gb(cache))
        if disk >= needed and memory >= size.memory_gb:
            typer.echo(
                f"Taking {size.model} at its real size. Its checkpoint is fabricated: random"
            )
            typer.echo(f"weights of the published layout in {cache}, kept for the next time.")
            return size.model, "random-full"
        typer.echo(
            f"{size.model} at its real size needs {needed} GB of disk and {size.memory_gb} GB of"
            f" memory; {disk:.0f} GB and {memory:.0f} GB are free."
        )
    typer.echo("A tiny model of the same layout it is.")
    return SIZES[-1].model, "random-tiny"


def free_gb(path: Path) -> float:
    """Return the free disk space where `path` is or would be."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free / 1e9


def axcore(*arguments: object, quiet: bool = False) -> int:
    """Run the command of the environment this script runs in, and return its exit code.

    Its messages are always shown; the data that it prints is not where it is to be `quiet`.
    """
    words = [os.path.relpath(word) if isinstance(word, Path) else str(word) for word in arguments]
    typer.echo(f"\n$ axcore {' '.join(f'{w!r}' if ' ' in w else w for w in words)}")
    command = [sys.executable, "-m", "axcore", *words]
    out = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, check=False, stdout=out).returncode


def explain() -> None:
    """Say what to look at."""
    samples = next(path for path in sorted(OUT.glob("calib_*")) if path.is_dir()).name
    typer.echo(
        CONVERTED.format(
            out=OUT,
            graph=Bundle.open(OUT).graphs[0].name,
            calibration=f"{samples}/*.png",
            manifest="axcore.json",
            build="build.sh",
            image=os.path.relpath(IMAGE),
        ),
        nl=False,
    )


if __name__ == "__main__":
    sys.exit(main())
