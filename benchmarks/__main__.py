"""Measure axcore against the ordinary way and against its targets, on this machine.

The page cache is left as it is: a checkpoint that was just fabricated or read is in memory where
it fits, for every side of a comparison. What is compared runs in turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from .bench import CASES, Bench, Row
from .rows import PARTS

HERE = Path(__file__).parent
IMAGES = HERE.parent / "axcore" / "data" / "images"
PACKAGES = [
    "axcore",
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxslim",
    "onnxruntime",
    "numpy",
]


def main() -> None:
    """Measure, then print the table and write it to ``benchmarks/results.md``."""
    arguments = parse()
    rows = []
    with work_folder(arguments.work) as work:
        for case in CASES:
            label = case.model if arguments.size == "full" else f"{case.model}, {arguments.size}"
            bench = Bench(case, arguments.size, work, arguments.images, not arguments.no_ordinary)
            for name in arguments.only or PARTS:
                for row in PARTS[name](bench):
                    print(f"{row.what}: {row.measured}", file=sys.stderr, flush=True)
                    rows.append((label, row))
    text = "\n".join([*machine(), "", *table(rows), ""])
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text, end="")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, help="folder for outputs, which are removed again")
    parser.add_argument("--only", choices=PARTS, action="append", help="repeatable; default: all")
    parser.add_argument("--no-ordinary", action="store_true", help="leave the ordinary way out")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: to try")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of photographs")
    return parser.parse_args()


@contextmanager
def work_folder(chosen: Path | None) -> Iterator[Path]:
    """Yield a new folder in `chosen` or the user's cache, and remove it at the end."""
    parent = chosen or user_cache_path("axcore")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def machine() -> list[str]:
    """Describe what was measured on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        f"{len(os.sched_getaffinity(0))} cores ({model[1] if model else platform.machine()}),"
        f" {memory / 1e9:.0f} GB of memory, Python {platform.python_version()},",
        ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".",
    ]


def table(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """Return the rows as a markdown table."""
    met = {True: "yes", False: "**no**", None: ""}
    return [
        "| model | what | measured | target | met |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {m} | {r.what} | {r.measured} | {r.target} | {met[r.met]} |" for m, r in rows),
    ]


if __name__ == "__main__":
    main()
