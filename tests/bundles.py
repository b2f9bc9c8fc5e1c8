"""A tiny checkpoint and the bundle made of it, shared because tracing takes most of the time."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

import axcore
from axcore import Options, Registry, files
from axcore.bundle import MANIFEST, Bundle
from axcore.calibration import embedded_images
from axcore.checkpoint.fabricate import fabricate
from axcore.checkpoint.shards import INDEX
from axcore.cli import main
from axcore.files import sha256
from axcore.testing import Recorder

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "qwen2.5-vl-3b"
STEM = "Qwen2.5-VL-3B-Instruct_vision"
ABACUS = Path(__file__).parent / "third_party" / "axcore_toolchain_abacus.py"
IMAGES = embedded_images()[0].parent
EMBEDDING = "model.embed_tokens.weight"
FORMATS = ("npy", "f32bin")
OPTIONS = {field.name for field in fields(Options)}
SHARD_BYTES = 250_000  # makes four shards, the last of which holds text weights alone
TEXT_SHARD = "model-00004-of-00004.safetensors"

SCHEMA = json.loads((Path(axcore.__file__).parent / "data/json.schema.json").read_bytes())

Axcore = Callable[..., "Outcome"]
"""Runs the command line in this process: arguments to exit code and what was printed."""


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


class Interrupted(Recorder):
    """A `Progress` whose user presses Ctrl-C after so many units of work, of one task or of any."""

    def __init__(self, after: int = 1, label: str = "") -> None:
        super().__init__()
        self.left, self.label = after, label

    def add(self, label: str, amount: float) -> None:
        self.left -= label.startswith(self.label)
        if self.left == 0:
            raise KeyboardInterrupt


# Fixtures ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def checkpoint(once: Callable[..., Path]) -> Path:
    """A tiny checkpoint in four shards. Tests do not change it."""
    card = Registry().find(MODEL).card
    return once("checkpoint", lambda out: fabricate(card, "tiny", out, shard_bytes=SHARD_BYTES))


@pytest.fixture(scope="session")
def converted(once: Callable[..., Path], checkpoint: Path) -> Path:
    """The bundle of `checkpoint` and `IMAGES`. Tests do not change it."""
    return once("converted", lambda out: convert(checkpoint, out))


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of `checkpoint` to change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def bundle(converted: Path, tmp_path: Path) -> Path:
    """A copy of `converted` to change."""
    return Path(shutil.copytree(converted, tmp_path / "bundle"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their checksum, as they are."""
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", noted)
    return names


@pytest.fixture(name="axcore")
def axcore_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["axcore", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        outcome = Outcome(code, *capsys.readouterr())
        if "--json" in arguments and outcome.out:
            check_json(" ".join(map(str, arguments)), outcome.out)
        return outcome

    return run


def check_json(command: str, text: str) -> None:
    """Hold what a command printed as JSON against the published schema."""
    command = command.replace("convert", "plan") if "--dry-run" in command else command
    (name,) = (name for name in SCHEMA["$defs"] if f"{command} ".startswith(f"{name} "))
    for document in text.splitlines() if name == "chat" else [text]:
        schema = {**SCHEMA, "$ref": f"#/$defs/{name}"}
        jsonschema.Draft202012Validator(schema).validate(json.loads(document))


def install(
    site: Path, name: str, source: str, version: str = "1", key: str = "", requires: str = ""
) -> None:
    """Lay an installed distribution of one module into `site`: a plugin called `key` or `name`."""
    info = site / f"axcore_{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: axcore-{name}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else "")
    )
    (info / "entry_points.txt").write_text(f"[axcore]\n{key or name} = axcore_{name}\n")
    (site / f"axcore_{name}.py").write_text(source)


@pytest.fixture
def abacus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third party's toolchain, installed."""
    install(tmp_path / "site", "abacus", ABACUS.read_text())
    monkeypatch.syspath_prepend(tmp_path / "site")


def convert(
    checkpoint: Path, out: Path, progress: Recorder | None = None, **changes: Any
) -> Bundle:
    """Convert as `converted` was, but for `changes`: arguments of `axcore.convert` or options."""
    named = {name for name in changes if name in Options.__dataclass_fields__}
    options = Options(
        **{"embedding_formats": FORMATS, **{name: changes.pop(name) for name in named}}
    )
    arguments = {"checkpoint": str(checkpoint), "images": [IMAGES], **changes}
    model = arguments.pop("model", MODEL)
    return axcore.convert(model, out, options=options, progress=progress, **arguments)


def command_line(checkpoint: Path, out: Path) -> list[str]:
    """Return the arguments that mean the same as `convert` without changes."""
    return [
        *("convert", MODEL, "--checkpoint", str(checkpoint), "--images", str(IMAGES)),
        *("--embedding-format", ",".join(FORMATS), "-o", str(out)),
    ]


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file that is not the pipeline's own state, by relative name."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.relative_to(folder).parts[0] != ".axcore"
    }


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """Let this process write no file beyond `nbytes`: a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps_done(progress: Recorder) -> set[str]:
    """Return the steps of a conversion that did their work."""
    return {line.partition(":")[0] for line in progress.said if ": done in " in line}


# Changing a checkpoint ---------------------------------------------------------------------------


def shard_of(checkpoint: Path, key: str) -> Path:
    """Return the shard that holds `key`."""
    index = json.loads((checkpoint / INDEX).read_text())
    return checkpoint / str(index["weight_map"][key])


def change_tensors(shard: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite a shard with its tensors changed in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)


def raised(key: str) -> Callable[[dict[str, Tensor]], None]:
    """Return a change that adds much to every other row of one tensor."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[key][::2] += 5

    return change


def map_tensors(checkpoint: Path, change: Callable[[str, Tensor], tuple[str, Tensor]]) -> None:
    """Rewrite every shard and the index with each name and tensor changed."""
    from safetensors.torch import load_file, save_file

    weight_map = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        tensors = dict(change(*item) for item in load_file(shard).items())
        save_file(tensors, shard)
        weight_map.update(dict.fromkeys(tensors, shard.name))
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change_header(shard: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a shard's header, leaving the data as they are."""
    raw = shard.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    change(header)
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def change_json(path: Path, **changes: Any) -> None:
    """Lay `changes` over a JSON file; None leaves a field out."""
    content: Mapping[str, Any] = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def list_again(bundle: Path, *names: str) -> None:
    """Enter files into the manifest as they now are; those that are gone leave it."""
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    for name in names:
        files.pop(name, None)
        if (path := bundle / name).is_file():
            files[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    change_json(bundle / MANIFEST, files=files)


def environment() -> dict[str, str]:
    """Return the environment of a command in a process of its own: as it would be for a user."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
