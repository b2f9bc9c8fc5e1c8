"""Every reader of foreign bytes, as a function of bytes.

A target writes its input into the folder that it is given and reads it as axcore does. `check` is
what holds of all: nothing but an AxcoreError comes out, whose message is short and does not blame a
plugin, nothing outside the folder is changed, no process is started and no connection opened.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import axcore
from axcore import AxcoreError, ContractError, Registry, encode_prompt, load_tokenizer
from axcore.bundle import MANIFEST, STATE, Bundle
from axcore.calibration import find_archive, find_images
from axcore.calibration.images import SourceImage
from axcore.checkpoint.config import read_config
from axcore.checkpoint.fabricate import fabricate
from axcore.checkpoint.headers import read_shard
from axcore.checkpoint.shards import INDEX, read_index
from axcore.evaluate.fidelity import load_features
from axcore.evaluate.predictions import PredictionFile, match, read_predictions
from axcore.files import Checksums
from axcore.layer_files import read_provenance
from axcore.pipeline.job import open_job
from axcore.progress import Silent
from axcore.quantization.text import read_text
from axcore.request import Request
from axcore.runtime.deployment import Deployment
from axcore.toolchains.pulsar2.results import read_result
from axcore.toolchains.pulsar2.tool import probe
from axcore.workspace import Workspace

from ..packaging import toys
from .watch import watching

LONGEST_MESSAGE = 2000
TEXT = "Was there a <|im_end|> in the image?\n\u00e9\u4f60\U0001f600 1234  \t" * 3
WEIGHTS = "model.safetensors"

Read = Callable[[bytes, Path], None]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: Reads the bytes, having written them into the folder.
        seeds: Inputs to begin with.
        most: Bytes of the longest input.
    """

    read: Read
    seeds: Callable[[], Iterable[bytes]]
    most: int = 1 << 13


TARGETS: dict[str, Target] = {}


def target(
    seeds: Callable[[], Iterable[bytes]], most: int = 1 << 13, name: str = ""
) -> Callable[[Read], Read]:
    """Register a reader under its own name."""

    def register(read: Read) -> Read:
        TARGETS[name or read.__name__.replace("_", "-")] = Target(read, seeds, most)
        return read

    return register


class Finding(AssertionError):
    """A reader did what it must not do."""


def check(name: str, data: bytes) -> None:
    """Give `data` to a target.

    Raises:
        Finding: It changed something elsewhere, reached out, or its message is no help.
        BaseException: Whatever it raised that is no AxcoreError.
    """
    materials()
    with tempfile.TemporaryDirectory(prefix="axcore-fuzz-") as temporary:
        folder = Path(temporary) / "in"
        folder.mkdir()
        with watching(folder) as watch:
            expected(lambda: TARGETS[name].read(data, folder))
        if watch.seen:
            raise Finding(f"reached out: {watch.seen[:3]}")


def expected(call: Callable[[], object]) -> bool:
    """Call a reader; say whether it read what it was given."""
    try:
        call()
    except ContractError as error:
        raise Finding(f"a plugin is blamed: {error}") from error
    except AxcoreError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise Finding(f"a message of {len(str(error))} characters") from error
        return False
    return True


def each(*calls: Callable[[], object]) -> None:
    """Call readers one after the other; one that refuses does not keep the next from reading."""
    for call in calls:
        expected(call)


# What there is to begin with ---------------------------------------------------------------------


@functools.cache
def registry() -> Registry:
    """Return the installed plugins."""
    return Registry()


@functools.cache
def materials() -> Path:
    """Make a tiny checkpoint of every model and the toy bundle, once for a process."""
    folder = Path(tempfile.mkdtemp(prefix="axcore-materials-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for entry in registry().entries:
        fabricate(entry.card, "tiny", folder / entry.card.id)
    toys.write_family(folder / "site", toys.AXLLM)
    sys.path.insert(0, str(folder / "site"))
    toys.write_bundle(folder / "bundle")
    return folder


@functools.cache
def toy_registry() -> Registry:
    """Return the toy family and the toolchains."""
    materials()
    return toys.registry()


def files_of(data: bytes) -> dict[str, Any]:
    """Return the files that an input is about: plain name to text or JSON."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    named = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in named if _is_plain(name)}


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return all(
        part not in ("", ".", "..") and part.isprintable() and part.isascii() and len(part) < 100
        for part in parts
    )


def lay(folder: Path, files: dict[str, Any]) -> None:
    """Write files; a text is written as it is, anything else as JSON."""
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        with suppress(OSError):  # a file where another name has a folder
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))


def dumped(*values: Any) -> list[bytes]:
    """Return values as JSON."""
    return [json.dumps(value).encode() for value in values]


def tiny(name: str) -> Callable[[], list[bytes]]:
    """Return a maker of seeds: the file of that name of every tiny checkpoint, each once."""
    return lambda: sorted({path.read_bytes() for path in materials().glob(f"*/{name}")})


# Checkpoints -------------------------------------------------------------------------------------


def _headers() -> list[bytes]:
    import numpy as np
    from safetensors.numpy import save

    tensors = {"a.weight": np.ones((2, 3), np.float16), "b": np.zeros((), np.int64)}
    spelt = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},"__metadata__":{"x":"y"}}'
    return [
        save(tensors), save({}), save({"e": np.zeros((0, 4), np.float32)}, {"format": "pt"}),
        len(spelt).to_bytes(8, "little") + spelt + b"\0\1\2\3",
        b"version https://git-lfs", bytes(8),
    ]  # fmt: skip


@target(_headers, most=4096)
def header(data: bytes, folder: Path) -> None:
    """Read a safetensors file. Oracle: safetensors accepts it too, and finds the same bytes."""
    from safetensors import deserialize

    (folder / WEIGHTS).write_bytes(data)
    shard = read_shard(folder / WEIGHTS)
    theirs = dict(deserialize(data))  # raises where safetensors refuses the file
    found = {key: data[t.offset : t.offset + t.nbytes] for key, t in shard.tensors.items()}
    if found != {key: bytes(tensor["data"]) for key, tensor in theirs.items()}:
        raise Finding("other bytes than safetensors finds")
    if any(t.shape != tuple(theirs[key]["shape"]) for key, t in shard.tensors.items()):
        raise Finding("another shape than safetensors finds")


def _indexes() -> list[bytes]:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return dumped({"metadata": {"total_size": 7}, "weight_map": names}, {"weight_map": {}})


@target(_indexes)
def index(data: bytes, folder: Path) -> None:
    """Read the index of shards."""
    (folder / INDEX).write_bytes(data)
    read_index(folder / INDEX)


QUANTISED = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}


def _configs(model: str) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        config = json.loads((materials() / model / "config.json").read_bytes())
        return dumped(config, {**config, "quantization_config": QUANTISED})

    return made


def _config(model: str) -> Read:
    def config(data: bytes, folder: Path) -> None:
        os.link(materials() / model / WEIGHTS, folder / WEIGHTS)
        (folder / "config.json").write_bytes(data)
        request = Request.of(model, checkpoint=str(folder))
        each(
            lambda: open_job(request, registry(), Silent()).checkpoint.close(),
            lambda: registry().recognise(read_config(folder), folder),
        )

    return config


CONFIGURED = ("internvl3-1b", "minicpm-v-2", "minicpm-v-4.6", "qwen2.5-vl-3b")
for _model in CONFIGURED:
    target(_configs(_model), name=f"config-{_model}")(_config(_model))


@target(_configs("qwen2.5-vl-3b"))
def planned(data: bytes, folder: Path) -> None:
    """Plan a conversion of a config: the family's answers, without weights."""
    os.link(materials() / "qwen2.5-vl-3b" / WEIGHTS, folder / WEIGHTS)
    (folder / "config.json").write_bytes(data)
    axcore.plan("qwen2.5-vl-3b", checkpoint=str(folder), registry=registry())


def _tokenizers() -> list[bytes]:
    return [toys.tokenizer().to_str().encode(), *tiny("tokenizer.json")()[:1]]


@target(_tokenizers, most=1 << 15)
def tokenizer(data: bytes, folder: Path) -> None:
    """Read a tokenizer and encode a text."""
    (folder / "tokenizer.json").write_bytes(data)
    encode_prompt(load_tokenizer(folder, ()), [TEXT])


def _parts() -> list[bytes]:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "Ġ": 3}
    settings = {"added_tokens_decoder": {"4": {"content": "<|end|>", "special": True}}}
    added = {"<|end|>": 4}
    parts = {"vocab.json": vocabulary, "merges.txt": "#version: 0.2\na b\n"}
    return dumped(
        parts, {**parts, "tokenizer_config.json": settings}, {**parts, "added_tokens.json": added}
    )


@target(_parts)
def tokenizer_parts(data: bytes, folder: Path) -> None:
    """Read a tokenizer in several files."""
    lay(folder, files_of(data))
    encode_prompt(load_tokenizer(folder, ()), [TEXT])


# Images ------------------------------------------------------------------------------------------


def _images() -> list[bytes]:
    from io import BytesIO

    from PIL import Image

    image, found = Image.linear_gradient("L").resize((12, 8)).convert("RGB"), []
    for mode, kind in [
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"),
        ("RGBA", "PNG"), ("I;16", "PNG"), ("1", "PNG"), ("RGB", "WEBP"), ("RGBA", "WEBP"),
    ]:  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = 6
        stream = BytesIO()
        source = Image.new("I;16", (12, 8), 300) if mode == "I;16" else image.convert(mode)
        source.save(stream, kind, exif=exif)
        found.append(stream.getvalue())
    return found


@target(_images, most=4096)
def image(data: bytes, folder: Path) -> None:
    """Decode an image."""
    del folder
    pixels = SourceImage("it", lambda: data).load()
    if pixels.mode != "RGB":
        raise Finding(f"an image of mode {pixels.mode}")


def _archives() -> list[bytes]:
    import tarfile
    import zipfile
    from io import BytesIO

    found, members = [], {"a.png": _images()[3], "../b.jpg": _images()[0], "c/d.txt": b"text"}
    for kind in ("w", "w:gz", "w:bz2", "w:xz"):
        stream = BytesIO()
        with tarfile.open(fileobj=stream, mode=kind) as tar:  # type: ignore[call-overload]
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        found.append(stream.getvalue())
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        found.append(stream.getvalue())
    return found


@target(_archives)
def archive(data: bytes, folder: Path) -> None:
    """Look for images in an archive, and for samples of calibration."""
    for suffix in (".tar", ".zip", ".tar.gz"):
        (folder / f"it{suffix}").write_bytes(data)
    each(
        *(
            partial(find_archive, str(folder / f"it{suffix}"), Silent())
            for suffix in (".tar", ".zip", ".tar.gz")
        ),
        lambda: [found.load() for found in find_images([folder / "it.tar"])[:3]],
    )


# Bundles -----------------------------------------------------------------------------------------


def _bundles() -> list[bytes]:
    manifest = json.loads((materials() / "bundle" / MANIFEST).read_bytes())
    files = {
        "config.json": {"architectures": ["BoardToy"], "eos_token_id": 7},
        "generation_config.json": {"eos_token_id": [9, 8]},
        "tokenizer_config.json": {"eos_token": {"content": toys.END}},
        f"{toys.STEM}.pulsar2.json": {},
    }
    tokens = toys.tokenizer().to_str()
    return dumped({MANIFEST: manifest}, files, {"tokenizer.json": json.loads(tokens)})


def lay_bundle(data: bytes, folder: Path) -> Path:
    """Copy the toy bundle, lay an input over it, and enter into its manifest what was laid."""
    bundle, files = Path(shutil.copytree(materials() / "bundle", folder / "bundle")), files_of(data)
    lay(bundle, files)
    if MANIFEST not in files:
        content = json.loads((bundle / MANIFEST).read_bytes())
        for name in files:
            if (bundle / name).is_file():
                content["files"][name] = toys.stamp((bundle / name).read_bytes())
        (bundle / MANIFEST).write_text(json.dumps(content))
    return bundle


@target(_bundles, most=1 << 15)
def bundle(data: bytes, folder: Path) -> None:
    """Open a bundle and read everything of its manifest."""
    place = lay_bundle(data, folder)
    opened = Bundle.open(place)
    each(
        lambda: opened.options,
        lambda: opened.build_request,
        lambda: (opened.graphs, opened.files, repr(opened)),
        opened.check_files,
        lambda: _deployed(place),
    )


def _deployed(place: Path) -> None:
    deployment = Deployment.open(place, toy_registry())
    each(
        lambda: deployment.assets,
        lambda: deployment.weights,
        lambda: deployment.embedding_file,
        lambda: deployment.layer_files(".axmodel"),
        *(
            lambda graph=graph: deployment.vision_file(graph, ".axmodel")
            for graph in deployment.graphs
        ),
    )


@target(_bundles, most=1 << 15)
def bundle_used(data: bytes, folder: Path) -> None:
    """Lint, build and package a bundle."""
    place, own = lay_bundle(data, folder), toy_registry()
    absent = "/no/such/tool"
    each(
        lambda: axcore.lint(place, registry=registry()),
        lambda: axcore.build(place, toolchain="pulsar2", command=absent, registry=registry()),
        lambda: axcore.build(place, toolchain="onnx", registry=registry()),
        lambda: axcore.package(place, folder / "axllm", runtime="axllm", registry=own),
        lambda: axcore.package(place, folder / "python", runtime="python", registry=own),
    )


def _states() -> list[bytes]:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        _convert(out, {"one": "1", "two": "2"})
        state = out / STATE
        found = {
            str(path.relative_to(out)): json.loads(path.read_bytes())
            for path in sorted(state.rglob("*.json"))
        }
        return dumped(found | {MANIFEST: json.loads((out / MANIFEST).read_bytes())})


def _convert(out: Path, values: dict[str, str]) -> None:
    workspace = Workspace(out, "toy")
    with workspace.locked():
        workspace.is_current("it")
        for name, value in values.items():
            workspace.run(name, {"value": value}, lambda at, n=name, v=value: _make(at, n, v))
        listed = {
            name: {"size": content.size, "sha256": content.sha256}
            for step in workspace.steps
            for name, content in step.files.items()
        }
        workspace.publish(json.dumps({"model": {"id": "toy"}, "files": listed}))
        workspace.remember("it")


def _make(folder: Path, name: str, value: str) -> dict[str, Any]:
    (folder / f"{name}.txt").write_text(value)
    (folder / "deep").mkdir()
    (folder / "deep" / f"{name}.txt").write_text(value * 2)
    return {"length": len(value)}


@target(_states)
def state(data: bytes, folder: Path) -> None:
    """Convert in a folder whose state was written by somebody else.

    Oracle: a conversion that ends well has its own files, and a file beside the folder stays.
    """
    out, elsewhere = folder / "out", folder / "x"
    elsewhere.write_text("mine")
    (out / STATE).mkdir(parents=True)
    lay(out, files_of(data))
    done = expected(lambda: _convert(out, {"one": "1", "three": "3"}))
    if elsewhere.read_text() != "mine":
        raise Finding("a file beside the folder was changed")
    if done and [(out / f"{name}.txt").read_text() for name in ("one", "three")] != ["1", "3"]:
        raise Finding("another result than from an empty folder")


@target(lambda: dumped({"it": [3, 1, 1, "0" * 64]}), most=2048)
def checksums(data: bytes, folder: Path) -> None:
    """Hash a file with a record of known checksums."""
    (folder / "record.json").write_bytes(data)
    (folder / "it").write_text("text")
    record = Checksums(folder / "record.json")
    record.of(folder / "it")
    record.move(folder / "it", folder / "there")
    record.save()


def _graphs() -> list[bytes]:
    from onnx import TensorProto, helper

    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    nodes = [
        helper.make_node("Softmax", ["x"], ["z"], axis=-1, name="s/0"),
        helper.make_node("Add", ["z", "x"], ["y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [port], [out]))
    entry = model.metadata_props.add()
    entry.key, entry.value = "axcore.build", "b"
    return [model.SerializeToString()]


@target(_graphs, most=4096)
def graph(data: bytes, folder: Path) -> None:
    """Read an ONNX file's provenance, and check it against an operator table."""
    (folder / "it.onnx").write_bytes(data)
    each(
        lambda: read_provenance(folder / "it.onnx"),
        lambda: axcore.lint(folder / "it.onnx", options={"chip": "AX650"}, registry=registry()),
    )


# Results -----------------------------------------------------------------------------------------


def _predictions() -> list[bytes]:
    answers = {"/photos/cat.jpg": "a cat", "dog.jpg": "a dog"}
    run = {"settings": {"prompt": "what?"}, "errors": {"x.jpg": "damaged"}}
    return dumped({"it.json": answers, "it.json.run.json": run}, {"it.json": answers})


@target(_predictions)
def predictions(data: bytes, folder: Path) -> None:
    """Read answers, and resume them."""
    lay(folder, files_of(data))
    path = folder / "it.json"
    each(
        lambda: match([read_predictions(path)] * 2),
        lambda: PredictionFile(path, {"prompt": "what?"}).record("new.jpg", "new"),
    )


def _features() -> list[bytes]:
    from io import BytesIO

    import numpy as np

    found = []
    for array in (np.ones((2, 3), np.float32), np.zeros(4, np.float16), np.zeros(2, "V2")):
        stream = BytesIO()
        np.save(stream, array)
        found.append(stream.getvalue())
    return found


@target(_features, most=1024)
def features(data: bytes, folder: Path) -> None:
    """Read features that a board dumped."""
    (folder / "it.npy").write_bytes(data)
    load_features(folder / "it.npy")


@target(lambda: [b"A text.\n\nAnother one.\n", b'{"text": "one"}\n{"text": "two"}\n'], most=2048)
def text(data: bytes, folder: Path) -> None:
    """Read texts to calibrate with."""
    for name in ("it.txt", "it.jsonl"):
        (folder / name).write_bytes(data)
    each(lambda: read_text(folder / "it.txt"), lambda: read_text(folder / "it.jsonl"))


@target(
    lambda: [
        b"max_cycle = 8,368,117\nfuse 1 subgraph(s)\n",
        "Quant Precision Table【EndToEnd\n┃ Operator ┃ Cosin ┃\n│ Conv_0 │ 0.9 │\n".encode(),
        *dumped([{"tensor_configs": {"Conv_0": {"out": {"bit_width": 16, "state": "BAKED"}}}}]),
    ]
)
def built(data: bytes, folder: Path) -> None:
    """Read what a build of Pulsar2 left: its log, and the precision of its tensors."""
    (folder / "quant").mkdir()
    (folder / "quant" / "quant_axmodel.json").write_bytes(data)
    (folder / "build.log").write_bytes(data)
    read_result(folder / "build.log", folder, None)


@target(lambda: dumped(["usage: pulsar2 llm_build --kv_cache_len", "version: 3.4\ncommit: abc"]))
def vendor(data: bytes, folder: Path) -> None:
    """Read what Pulsar2 says of itself. A stand-in speaks in its place."""
    said = data.decode(errors="replace")

    class Standin(SimpleNamespace):
        def ask(self, *_: str, folder: Path) -> SimpleNamespace:
            del folder
            return SimpleNamespace(returncode=0, stdout=said)

    with suppress(TypeError):  # `replace` of a stand-in that is no dataclass, once it has been read
        probe(Standin(words=["pulsar2"]), folder)  # type: ignore[arg-type]
