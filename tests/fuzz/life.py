"""Does things to a bundle on order, and dies in the middle where it is told to.

Orders come as JSON, a line each; each is carried out in a process of its own, which is answered by
its exit code: 0 done, 1 refused, `DEAD` died as ordered, anything else is a fault. Dying is
``os._exit`` just before a change to a file: as ``kill -9``, it lets nothing be tidied up.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from axcore import AxcoreError
from axcore.bundle import MANIFEST
from axcore.workspace import Workspace

from .watch import CHANGES, WRITES

DONE, REFUSED, DEAD = 0, 1, 70
MODEL, BUILD = "toy", "build-toy"
PIECE = "axcore.piece"  # between two pieces of a file


def main() -> None:
    """Carry out orders until there are no more."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            os._exit(carried_out(json.loads(line)))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


def carried_out(order: dict[str, Any]) -> int:
    """Do what is ordered, and return the exit code."""
    try:
        if order["die_at"]:
            die_at(order["die_at"])
        {"convert": convert, "build": build, "package": package, "answer": answer}[order["do"]](
            Path(order["out"]), order["value"]
        )
    except AxcoreError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return 2
    return DONE


def die_at(count: int) -> None:
    """End this process before its change number `count` to a file."""
    left = [count]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and bool((arguments[2] or 0) & WRITES)
        if writes or event in CHANGES or event == PIECE:
            left[0] -= 1
            if left[0] == 0:
                os._exit(DEAD)

    sys.addaudithook(hook)


# What is done ------------------------------------------------------------------------------------


def convert(out: Path, value: dict[str, str]) -> None:
    """Convert: every entry is a step of two files, and follows from its value alone."""
    workspace = Workspace(out, MODEL)
    with workspace.locked():
        for name, text in value.items():
            workspace.run(name, {"value": text}, lambda at, n=name, t=text: write(at, n, t))  # type: ignore[misc]
        listed = {
            name: vars(content) for step in workspace.steps for name, content in step.files.items()
        }
        workspace.publish(json.dumps({"model": {"id": MODEL}, "files": listed}, sort_keys=True))
        workspace.remember(json.dumps(value))


def contents(value: dict[str, str]) -> dict[str, bytes]:
    """Return the files that `convert` makes of a request."""
    found = {f"{name}.onnx": f"{name}={text}\n".encode() * 100 for name, text in value.items()}
    return found | {f"deep/{name}.tar": text.encode() for name, text in value.items()}


def write(folder: Path, name: str, text: str) -> None:
    """Write the files of one step, the first in two pieces."""
    (folder / "deep").mkdir()
    for path, content in contents({name: text}).items():
        with (folder / path).open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            sys.audit(PIECE)
            file.write(content[len(content) // 2 :])


def build(out: Path, value: str) -> None:
    """Build: a step for each graph that the manifest lists, which depends on its content."""
    workspace = Workspace(out, MODEL, BUILD)
    with workspace.locked():
        listed = json.loads((out / MANIFEST).read_text())["files"]
        for name in sorted(name for name in listed if name.endswith(".onnx")):
            step = workspace.run(
                name.removesuffix(".onnx"),
                {"value": value, "graph": out / name},
                lambda at, n=name: compile_graph(out / n, at, value),  # type: ignore[misc]
            )
            workspace.put(step)
        workspace.publish()


def built(graph: bytes, value: str) -> bytes:
    """Return what `build` makes of a graph."""
    return value.encode() + graph[::-1]


def compile_graph(graph: Path, folder: Path, value: str) -> None:
    """Write the file of one step."""
    (folder / f"{graph.stem}.axmodel").write_bytes(built(graph.read_bytes(), value))


def package(out: Path, value: dict[str, str]) -> None:
    """Package the toy bundle `value["bundle"]`."""
    from ..packaging import toys

    sys.path.insert(0, value["site"])
    toys.packaged(Path(value["bundle"]), value["runtime"], out)  # type: ignore[arg-type]


def answer(out: Path, value: dict[str, str]) -> None:
    """Answer about images one after the other, as an evaluation does."""
    from axcore.evaluate.predictions import PredictionFile

    file = PredictionFile(out, {"prompt": "what?"})
    for image, text in value.items():
        file.record(image, text)


if __name__ == "__main__":
    main()
