"""Fuzz the readers, guided by coverage: ``python -m tests.fuzz TARGET|all --seconds N``.

Every target runs in a process of its own, so that one that dies or takes all memory is a finding as
well. New inputs and findings are written below ``build/fuzz``; ``--keep`` takes the shortest inputs
into the corpus of the project, and ``--seeds`` writes the inputs to begin with there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus")
WORK = Path("build/fuzz")
INSTRUMENTED = ["axcore", "axcore_plugins_internvl", "axcore_plugins_minicpmv",
                "axcore_plugins_qwen25vl", "safetensors", "PIL", "tarfile", "zipfile"]  # fmt: skip
MEMORY_MB = 2000
HANGING_S, SLOW_S = 30, 1.0
KEPT_BYTES, KEPT_FILES = 60_000, 60  # of a target, in the project
RESTARTS = 20


@dataclass
class Outcome:
    """What fuzzing a target came to."""

    target: str
    executions: int = 0
    seconds: float = 0.0
    corpus: int = 0
    findings: int = 0


def main() -> int:
    """Fuzz; return 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a target, several with commas, or `all`")
    parser.add_argument("--seconds", type=float, default=120, help="of all targets together")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs again; 0 for others")
    parser.add_argument("--executions", type=int, default=-1, help="most of a target; -1: any")
    parser.add_argument("--keep", action="store_true", help="enlarge the project's corpus")
    parser.add_argument("--seeds", action="store_true", help="write the seeds and end")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if Path("/dev/shm").is_dir():  # thousands of small folders a second
        tempfile.tempdir = "/dev/shm"
    if given.child:
        fuzz(given.target, given.child, given.seed, given.executions)
    from .targets import TARGETS

    names = list(TARGETS) if given.target == "all" else given.target.split(",")
    if given.seeds:
        for name in names:
            for data in TARGETS[name].seeds():
                store(CORPUS / name, data)
        return 0
    share = given.seconds * given.jobs / len(names)
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = list(
            pool.map(lambda name: guided(name, share, given.seed, given.executions), names)
        )
    if given.keep:
        for name in names:
            keep(name)
    sys.stdout.write(json.dumps([vars(outcome) for outcome in outcomes], indent=1) + "\n")
    return 1 if any(outcome.findings for outcome in outcomes) else 0


def guided(name: str, seconds: float, seed: int, executions: int) -> Outcome:
    """Run a target's process until its time or count is over, again where it dies."""
    outcome, work = Outcome(name), WORK / name
    for folder in ("corpus", "findings"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for _ in range(RESTARTS):
        left = seconds - (time.monotonic() - started)
        if left < min(5.0, seconds / 2):
            break
        command = [
            *(sys.executable, "-m", "tests.fuzz", name),
            *("--child", str(left), "--seed", str(seed), "--executions", str(executions)),
        ]
        with (work / "log.txt").open("w") as log:
            environment = {**os.environ, "PYTHONHASHSEED": "0"} if seed else None
            code = subprocess.run(
                command, stdout=log, stderr=log, env=environment, check=False
            ).returncode
        said = (work / "log.txt").read_text(errors="replace")
        counted = re.findall(r"^(?:stat::number_of_executed_units: |#)(\d+)", said, re.MULTILINE)
        outcome.executions += int(counted[-1]) if counted else 0
        if not code and executions > 0:
            break
        if code and not counted:
            raise SystemExit(f"{name} did not run:\n{said[-3000:]}")
    outcome.seconds = round(time.monotonic() - started, 1)
    outcome.corpus = len(list((work / "corpus").iterdir()))
    found = [path for path in (work / "findings").iterdir() if path.suffix != ".txt"]
    outcome.findings = len(found)
    sys.stderr.write(f"{outcome}\n")
    return outcome


def fuzz(name: str, seconds: float, seed: int, executions: int) -> None:
    """Fuzz one target in this process, and end it."""
    import atheris

    # Never left, as axcore imports most modules where they are needed.
    atheris.instrument_imports(include=INSTRUMENTED).__enter__()
    from .mutations import mutated
    from .targets import TARGETS

    work, slow = WORK / name, Slow()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if data[:1] in (b"{", b"[") and seed % 4:
            return mutated(data, seed, lambda text, _: bytes(atheris.Mutate(text, most)))[:most]
        return bytes(atheris.Mutate(data, most))

    def once(data: bytes) -> None:
        error = attempt(name, data, slow)
        if error is not None:
            note(work / "findings", data, error)

    folders = [work / "corpus", CORPUS / name]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0], f"-max_total_time={max(1, int(seconds))}", f"-max_len={TARGETS[name].most}",
        f"-rss_limit_mb={MEMORY_MB}", f"-timeout={HANGING_S}", "-print_final_stats=1",
        f"-seed={seed}", f"-runs={executions}",
        f"-artifact_prefix={work / 'findings'}/", *map(str, folders),
    ]  # fmt: skip
    for data in TARGETS[name].seeds():
        store(folders[0], data)
        once(data)  # imports what is needed, untimed by libFuzzer
    atheris.Setup(arguments, once, custom_mutator=mutate)
    atheris.Fuzz()


class Slow:
    """Says whether an execution took too much of the processor; the first few import modules."""

    def __init__(self) -> None:
        self.count, self.began = 0, 0.0

    def __enter__(self) -> None:
        self.count, self.began = self.count + 1, time.process_time()

    def __exit__(self, *_: object) -> None:
        taken = time.process_time() - self.began
        if self.count > 50 and taken > SLOW_S:
            raise AssertionError(f"slow: {taken:.1f} s of the processor")


def attempt(name: str, data: bytes, slow: Any) -> BaseException | None:
    """Give `data` to a target; return what it should not have raised."""
    from .targets import check

    try:
        with slow:
            check(name, data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return error
    return None


def note(folder: Path, data: bytes, error: BaseException) -> None:
    """Write a finding down, one for each place that raises."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/fuzz/" not in frame.filename] or list(frames)
    ours = [f for f in own if "axcore" in f.filename and "site-packages" not in f.filename] or own
    place = f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].lineno}"
    if type(error).__name__ == "Finding" or not own:
        place = f"{type(error).__name__}-{re.sub(r'[^a-z]+', '-', str(error).lower())[:40]}"
    known = folder / place
    if not known.exists() or len(known.read_bytes()) > len(data):
        known.write_bytes(data)
        told = "".join(traceback.format_exception(error, limit=-6))
        (folder / f"{place}.txt").write_text(told, errors="backslashreplace")


def store(folder: Path, data: bytes) -> None:
    """Write an input under the name that it always has."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def keep(name: str) -> None:
    """Take the shortest inputs that reached new code into the project's corpus."""
    room = KEPT_BYTES - sum(path.stat().st_size for path in (CORPUS / name).iterdir())
    count = KEPT_FILES - len(list((CORPUS / name).iterdir()))
    found = sorted((WORK / name / "corpus").iterdir(), key=lambda path: path.stat().st_size)
    for path in found[: max(0, count)]:
        room -= path.stat().st_size
        if room < 0:
            break
        store(CORPUS / name, path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
