"""Find a Python that has gptqmodel, and run the worker with it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from ..errors import ToolchainError
from ..foreign import decode_json, load
from ..limits import MESSAGE_BYTES, RECORD_BYTES
from ..plain import shown
from ..process import child, ending, output_of, short_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..progress import Progress

T = TypeVar("T")

WORKER = Path(__file__).with_name("worker.py")
LIBRARY = "gptqmodel"
_TAIL_LINES = 15
_FEW_CORES = 2
_PROBE_S = 60
_NOWHERE = subprocess.DEVNULL
_OTHER = "use gptqmodel 7.6.0, and a Python whose libraries print nothing when it ends"
_PROBE = "import importlib.util as u, sys; sys.exit(not u.find_spec(sys.argv[1]))"
_REMEDY = (
    "it needs an environment of its own, because it pins other versions: `make gptq-env` creates"
    " one in .venv-gptq, or\n"
    "  python3 -m venv gptq && gptq/bin/pip install torch==2.13.0 numpy==2.2.6 setuptools wheel\n"
    "  gptq/bin/pip install --no-build-isolation gptqmodel==7.6.0 numpy==2.2.6\n"
    "then name it: --python gptq/bin/python"
)


def find_python(python: Path | None) -> Path:
    """Return a Python that has gptqmodel: `python`, or the current one.

    Raises:
        ToolchainError: gptqmodel is not installed there, or `python` cannot be run.
    """
    if python is None:
        if importlib.util.find_spec(LIBRARY) is None:
            raise ToolchainError(
                f"{LIBRARY} is not installed here\n  looked in: {sys.executable}", hint=_REMEDY
            )
        return Path(sys.executable)
    found = shutil.which(python)
    if found is None:
        raise ToolchainError(f"no program {python}", hint="name a Python with --python")
    # Not resolved: a virtual environment is found by the path of its link to Python.
    path = Path(found).absolute()
    # In the worker's folder, because a module in the current one could hide a library.
    probe = [str(path), "-c", _PROBE, LIBRARY]
    try:
        asked = subprocess.run(
            probe,
            cwd=WORKER.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(
            f"{path} cannot be asked for {LIBRARY}: {error}", hint="name a Python with --python"
        ) from error
    if asked.returncode:
        raise ToolchainError(f"{LIBRARY} is not installed in {path}", hint=_REMEDY)
    return path


@dataclass(frozen=True)
class Worker:
    """Runs `worker.py`.

    Attributes:
        python: See `find_python`.
        folder: For its files, temporary ones included.
        log: Gets the output of the libraries; kept if they fail.
        progress: Gets messages and finished work.
    """

    python: Path
    folder: Path
    log: Path
    progress: Progress

    def run(
        self, kind: type[T], order: Mapping[str, Any], label: str, total: float, unit: str
    ) -> T:
        """Run an order in a process of its own, and return its report.

        Args:
            kind: What the report has to hold.
            order: See `worker.quantise` and `worker.measure`.
            label, total, unit: See `Progress.task`.

        Raises:
            ToolchainError: It failed (the message has the last lines of the log), or reports
                something else than it is to.
        """
        report, order_file = self.folder / "report.json", self.folder / "order.json"
        order_file.write_text(json.dumps({**order, "report": str(report)}), encoding="utf-8")
        words = [str(self.python), str(WORKER), str(order_file)]
        with (
            self.log.open("w", encoding="utf-8") as file,
            child(words, self.folder, _environment(self.folder), stderr=file) as process,
            self.progress.task(label, total, unit) as task,
        ):
            for message in _messages(output_of(process)):
                if isinstance(message, str):
                    self.progress.say(message)
                else:
                    task.advance(message)
            code = process.wait()
        if code:
            raise _failure(words, code, self.log)
        self.log.unlink()
        return load(kind, report, RECORD_BYTES, ToolchainError, hint=_OTHER)


def _messages(stream: IO[bytes]) -> Iterator[str | int]:
    """Yield what the worker says, a JSON value a line: a text, or an amount of work.

    Raises:
        ToolchainError: It says something else.
    """
    while line := stream.readline(MESSAGE_BYTES):
        try:
            message = decode_json(line)
        except ValueError:
            message = None
        if not isinstance(message, (str, int)) or isinstance(message, bool):
            raise ToolchainError(
                f"the worker said {shown(line.decode('utf-8', 'replace'))}", hint=_OTHER
            )
        yield message


def _environment(folder: Path) -> dict[str, str]:
    # Offloaded tensors go to a folder that is removed. Nothing may be downloaded.
    environment = {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if (os.cpu_count() or 1) <= _FEW_CORES:
        environment["GPTQMODEL_CPU_WORKERS"] = str(_FEW_CORES)  # it deadlocks with fewer
    return environment


def _failure(words: list[str], code: int, log: Path) -> ToolchainError:
    with log.open(encoding="utf-8", errors="replace") as file:
        lines = iter(partial(file.readline, MESSAGE_BYTES), "")
        last = deque((line.rstrip() for line in lines if line.strip()), maxlen=_TAIL_LINES)
    shown_lines = "".join(f"\n    {line[:300]}" for line in last) or " none"
    hint = "correct the cause and run the same command again"
    if short_of_memory(code):
        hint = f"it was probably killed for lack of memory; {hint}"
    return ToolchainError(
        f"quantising failed: the worker {ending(code)}\n"
        f"  command: {' '.join(words)}\n  log: {log}\n  last lines:{shown_lines}",
        hint=hint,
    )
