"""A family in a few lines, and a bundle of it as convert and build leave it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from axcore import BuildRequest, Calibration, GraphFile, LlmBuildArgs, Options, Port, Registry
from axcore.bundle import SCHEMA
from axcore.packaging import Runtime, package
from axcore.plain import plain
from axcore.progress import Silent

if TYPE_CHECKING:
    from pathlib import Path

MODULE = "axcore_plugins_boardtoy"
MODEL = "board-toy"
STEM, KIND = "Board-Toy.1_vision", "toy_text"
CHUNK, CACHE, LAYERS = 8, 31, 3
VOCABULARY, HIDDEN = 320, 4
EMBEDDING = "model.embed_tokens.weight.bfloat16.bin"
END = "<|end|>"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

FAMILY = '''
"""A family for the tests of board folders."""

from axcore import ModelCard, Profile, hookimpl


@hookimpl
def model_cards():
    return [
        ModelCard(
            id="{model}",
            repo="somebody/Board-Toy",
            architectures=("BoardToy",),
            profiles={{"image": Profile(56, 84, {chunk}, {cache})}},
            runtimes={{"axllm": {axllm!r}}},
        )
    ]
'''
AXLLM = {"tokenizer_type": "Toy", "vlm_type": "ToyVL", "vision_patch_size": 14}


def registry() -> Registry:
    """Return a registry of the toy family alone; its module must have been written."""
    return Registry([EntryPoint("boardtoy", MODULE, "axcore")])


def packaged(bundle: Path, runtime: Runtime, out: Path | None = None) -> Path:
    """Package a toy bundle, into `board` beside it unless told otherwise."""
    return package(bundle, out or bundle.parent / "board", runtime, registry(), Silent())


def write_family(folder: Path, axllm: dict[str, Any]) -> None:
    """Write the toy family as a package with tests and data of its own."""
    package = folder / MODULE
    for sub in ("tests", "data"):
        (package / sub).mkdir(parents=True)
    text = FAMILY.format(model=MODEL, chunk=CHUNK, cache=CACHE, axllm=axllm)
    (package / "__init__.py").write_text(text)
    (package / "tests" / "test_it.py").write_text("import torch\n")
    (package / "data" / "table.json").write_text("[1]")
    (package / "pyproject.toml").write_text("")


def tokenizer() -> Tokenizer:
    """Return a byte-level BPE with a few merges, as models have it, and an end token."""
    units = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("c", "a"), ("Ċ", "Ċ")]
    tokens = [*units, *("".join(merge) for merge in merges)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END, "<two\nlines>", "b64:no"])
    return made


def request(**changes: Any) -> BuildRequest:
    """Return what a toolchain was told of the toy bundle."""
    pixels, rows = Port("pixels", (1, 3, 56, 84)), Port("rows", (6, HIDDEN))
    graph = GraphFile(STEM, (pixels,), (rows,), Calibration(), "pixels.tar", 0, component="vision")
    given: dict[str, Any] = {
        "model": MODEL,
        "checkpoint": "/nowhere",
        "options": {"chip": "AX650"},
        "task": "image",
        "graphs": (graph,),
        "llm": LlmBuildArgs(CHUNK, CACHE, (8, 16)),
        "decoder_layers": LAYERS,
    }
    return BuildRequest(**{**given, **changes})


def layer(index: int, suffix: str = ".axmodel") -> str:
    return f"{KIND}_p{CHUNK}_l{index}_together{suffix}"


def built(suffix: str) -> list[str]:
    """Return the names that a build leaves; ONNX models have their weights beside them."""
    names = [*(layer(i, suffix) for i in range(LAYERS)), f"{KIND}_post{suffix}"]
    if suffix == ".axmodel":
        return [*names, f"{STEM}.axmodel"]
    return names + [f"{name}.data" for name in names]


def write_bundle(folder: Path, suffix: str = ".axmodel") -> Path:
    """Write the toy bundle, with stand-ins for what a toolchain made of it."""
    folder.mkdir()
    files = {
        f"{STEM}.onnx": b"graph",
        f"{STEM}.onnx.data": b"weights",
        f"{STEM}.pulsar2.json": b"{}",
        EMBEDDING: bytes(range(256)) * (VOCABULARY * HIDDEN * 2 // 256),
        "config.json": json.dumps({"architectures": ["BoardToy"], "eos_token_id": 7}).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [9, 8]}).encode(),
        "tokenizer_config.json": json.dumps({"eos_token": {"content": END}}).encode(),
        "tokenizer.json": tokenizer().to_str().encode(),
        "llm/config.json": b"{}",
        "build.sh": b"#!/bin/sh\n",
    }
    (folder / "llm").mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name in built(suffix):
        (folder / name).write_bytes(name.encode())
    (folder / "axcore.json").write_text(json.dumps(manifest(files)))
    return folder


def change_config(bundle: Path, **config: Any) -> None:
    """Write another config, as if the bundle had been made with it."""
    content = json.dumps(config).encode()
    (bundle / "config.json").write_bytes(content)
    change_manifest(bundle, files={"config.json": stamp(content)})


def change_manifest(bundle: Path, **changes: Any) -> None:
    """Change entries of the manifest; entries of entries are laid over those there."""
    path = bundle / "axcore.json"
    written = json.loads(path.read_text())
    for name, change in changes.items():
        written[name] = {**written[name], **change}
    path.write_text(json.dumps(written))


def stamp(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def manifest(files: dict[str, bytes]) -> dict[str, Any]:
    card = registry().find(MODEL).card
    return {
        "schema": SCHEMA,
        "model": {"id": MODEL, "task": "image", "profile": asdict(card.profiles["image"])},
        "checkpoint": {"folder": "/nowhere"},
        "options": asdict(Options()),
        "vision_only": False,
        "toolchain": "pulsar2",
        "target": "AX650",
        "notes": [],
        "embedding": {"key": "embed", "shape": [VOCABULARY, HIDDEN], "scale": 1.0, "factor": 1.0},
        "build": plain(request()),
        "files": {name: stamp(content) for name, content in files.items()},
    }
