"""What refusing hostile input costs: the whole command, imports and all.

The inputs are written with the standard library alone, because the memory of this process would be
counted as the command's (see `measure.run`).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .bench import Bench, Row
from .measure import axcore

MODEL = "internvl3.5-1b"
MOST_S, MOST_BYTES = 3.0, 0.6e9
MB = 1 << 20

Attack = Callable[[Path], list[str]]
"""Makes a copy of a tiny bundle or checkpoint hostile; returns the command that must refuse it."""


def refusal_rows(bench: Bench) -> Iterator[Row]:
    """Try every attack on copies of a tiny checkpoint and of a bundle made and built of it."""
    if bench.case.model != MODEL:
        return
    with bench.folder() as folder:
        clean = folder / "clean"
        bundle, checkpoint = clean / "bundle", clean / "checkpoint"
        bench.convert(bundle, "tiny")
        axcore("build", bundle, "--toolchain", "onnx")
        manifest = json.loads((bundle / "axcore.json").read_text())
        shutil.copytree(manifest["checkpoint"]["folder"], checkpoint)
        for name, attack in ATTACKS.items():
            copy = folder / "copy"
            shutil.copytree(clean, copy)
            command = attack(copy)
            done = axcore(*command, check=False)
            refused = done.code in (1, 2) and "error: " in done.stderr
            good = refused and done.seconds <= MOST_S and done.peak_bytes <= MOST_BYTES
            measured = f"{done.seconds:.1f} s, {done.peak_bytes / 1e6:.0f} MB"
            yield Row(
                f"refusing {name} (`{command[0]}`)",
                measured if refused else f"not refused: {done.failure or measured}",
                "≤ 3 s, ≤ 600 MB",
                good,
            )
            shutil.rmtree(copy)


# Checkpoints -------------------------------------------------------------------------------------


def plan(copy: Path) -> list[str]:
    return ["plan", str(copy / "checkpoint")]


def text_of(name: str, before: str, piece: str, count: int, behind: str = "") -> Attack:
    """Put a text in place of a file of the checkpoint, a piece of it repeated."""

    def attack(copy: Path) -> list[str]:
        write(copy / "checkpoint" / name, before, piece, count, behind)
        return plan(copy)

    return attack


def write(path: Path, before: str, piece: str, count: int, behind: str) -> None:
    """Write a text, a piece of it repeated."""
    with path.open("w") as file:
        file.write(before)
        for _ in range(count):
            file.write(piece)
        file.write(behind)


def config_with(change: Callable[[dict[str, Any]], object]) -> Attack:
    """Change the config."""

    def attack(copy: Path) -> list[str]:
        path = copy / "checkpoint" / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return plan(copy)

    return attack


def header(pieces: Callable[[], Iterator[str]], claimed: int | None = None) -> Attack:
    """Put a safetensors file that consists of a header in place of the weights."""

    def attack(copy: Path) -> list[str]:
        for path in (copy / "checkpoint").glob("*.safetensors*"):
            path.unlink()
        path = copy / "checkpoint" / "model.safetensors"
        with path.open("wb") as file:
            file.write(bytes(8))
            for piece in pieces():
                file.write(piece.encode())
            length = claimed or file.tell() - 8
            file.seek(0)
            file.write(struct.pack("<Q", length))
        return plan(copy)

    return attack


def many_tensors() -> Iterator[str]:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    yield "{"
    for number in range(150_000):
        yield f'"tensor.{number}":{entry},'
    yield f'"last":{entry}}}'


def many_dimensions() -> Iterator[str]:
    yield '{"a":{"dtype":"F32","shape":[1'
    for _ in range(8_000_000):
        yield ",1"
    yield '],"data_offsets":[0,4]}}'


def nothing() -> Iterator[str]:
    yield "{}"


def pipe(name: str) -> Attack:
    """Put a pipe in place of a file."""

    def attack(copy: Path) -> list[str]:
        path = copy / "checkpoint" / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return plan(copy)

    return attack


def not_a_number(copy: Path) -> list[str]:
    """Write NaN into the middle of the weights."""
    (shard,) = (copy / "checkpoint").glob("*.safetensors")
    with shard.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
        key = next(name for name in entries if name.endswith("layers.0.mlp.up_proj.weight"))
        file.seek(8 + length + entries[key]["data_offsets"][0])
        file.write(b"\xc0\x7f" * 2)
    return ["convert", str(copy / "checkpoint"), "-o", str(copy / "out"), "--no-verify"]


def large_tokenizer(copy: Path) -> list[str]:
    write(copy / "checkpoint" / "tokenizer.json", '"', "x" * MB, 200, '"')
    return ["convert", str(copy / "checkpoint"), "-o", str(copy / "out"), "--no-verify"]


def licence_link(copy: Path) -> list[str]:
    """Name a file of the system as one of the checkpoint's."""
    path = copy / "checkpoint" / "LICENSE"
    path.unlink(missing_ok=True)
    path.symlink_to("/etc/passwd")
    return ["convert", str(copy / "checkpoint"), "-o", str(copy / "out"), "--no-verify"]


# Tokenizers, read when a bundle is run -----------------------------------------------------------


def tokenizer_with(change: Callable[[dict[str, Any]], object]) -> Attack:
    """Change the tokenizer of the bundle, and its checksum, as whoever sends it would."""

    def attack(copy: Path) -> list[str]:
        path = copy / "bundle" / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        change(tokenizer)
        path.write_text(json.dumps(tokenizer))
        vouch(copy / "bundle", "tokenizer.json")
        return ["run", str(copy / "bundle"), "--prompt", "a" * 40]

    return attack


def vouch(bundle: Path, name: str) -> None:
    """Write the checksum of a file into the manifest, and forget the rest."""
    import hashlib

    path, content = bundle / "axcore.json", (bundle / name).read_bytes()
    manifest = json.loads(path.read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"size": len(content), "sha256": digest}
    path.write_text(json.dumps(manifest))
    shutil.rmtree(bundle / ".axcore")


def growing(tokenizer: dict[str, Any]) -> None:
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [grow] * 12}


def backtracking(tokenizer: dict[str, Any]) -> None:
    split = {"Regex": "(a+)+$"}
    tokenizer["pre_tokenizer"] = {
        "type": "Split", "pattern": split, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def far_id(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["far"] = 4_000_000_000


# Manifests and state -----------------------------------------------------------------------------


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Attack:
    """Change the manifest."""

    def attack(copy: Path) -> list[str]:
        path = copy / "bundle" / "axcore.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
        return ["run", str(copy / "bundle"), "--prompt", "?"]

    return attack


def manifest_text(before: str, piece: str, count: int, behind: str) -> Attack:
    def attack(copy: Path) -> list[str]:
        write(copy / "bundle" / "axcore.json", before, piece, count, behind)
        return ["run", str(copy / "bundle"), "--prompt", "?"]

    return attack


def state_link(copy: Path) -> list[str]:
    """Lead the state out of the folder."""
    state = copy / "bundle" / ".axcore"
    state.rename(copy / "elsewhere")
    state.symlink_to(copy / "elsewhere")
    return ["build", str(copy / "bundle"), "--toolchain", "onnx"]


def flipped(copy: Path) -> list[str]:
    """Flip a bit of a built model's weights."""
    path = next((copy / "bundle").glob("*_l0_together.onnx.data"))
    with path.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    return ["run", str(copy / "bundle"), "--prompt", "?"]


def forged_package(copy: Path) -> list[str]:
    """Claim that a folder with a user's file was packaged."""
    target = copy / "mine"
    target.mkdir()
    (target / "axcore.json").write_text('{"packaged_for": 1}')
    (target / "diary.txt").write_text("mine")
    return ["package", str(copy / "bundle"), "--runtime", "python", "-o", str(target)]


# Images, archives, answers -----------------------------------------------------------------------


def png(side: int) -> bytes:
    """Return a PNG of one colour, `side` pixels high and wide."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer, rows = zlib.compressobj(9), b"\0" * (side * 3 + 1)
    packed = b"".join(packer.compress(rows) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", packed), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge_image(copy: Path) -> list[str]:
    (copy / "huge.png").write_bytes(png(10_000))
    return ["run", str(copy / "bundle"), "--prompt", "?", "--image", str(copy / "huge.png")]


def pax(copy: Path) -> list[str]:
    """Declare a gigabyte of headers."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    (copy / "a.tar").write_bytes(member.tobuf() + b"\0" * MB)
    options = ["--images", str(copy / "a.tar"), "-o", str(copy / "out")]
    return ["convert", str(copy / "checkpoint"), *options]


def tar_bomb(copy: Path) -> list[str]:
    """Compress 300 MB of one colour."""
    with tarfile.open(copy / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("x.png")
        member.size = 300 * MB
        with Path("/dev/zero").open("rb") as zeros:
            archive.addfile(member, zeros)
    options = ["--images", str(copy / "a.tar.gz"), "-o", str(copy / "out")]
    return ["convert", str(copy / "checkpoint"), *options]


def device(copy: Path) -> list[str]:
    (copy / "answers.json").symlink_to("/dev/zero")
    return ["evaluate", "agreement", str(copy / "answers.json"), str(copy / "answers.json")]


def batches(copy: Path) -> list[str]:
    options = ["--batch-sizes", "1-99999999999", "-o", str(copy / "t.csv")]
    return ["evaluate", "throughput", str(copy / "bundle"), *options]


def layers(config: dict[str, Any]) -> None:
    config["llm_config"]["num_hidden_layers"] = 1_000_000


def blocks(config: dict[str, Any]) -> None:
    config["vision_config"]["num_hidden_layers"] = 1_000_000


def above(manifest: dict[str, Any]) -> None:
    manifest["files"]["../../outside"] = {"size": 1, "sha256": "0" * 64}


ATTACKS: Mapping[str, Attack] = {
    "a config of 200 MB": text_of("config.json", '{"a": "', "x" * MB, 200, '"}'),
    "a tokenizer of 200 MB": large_tokenizer,
    "a config of 4 MB of lists": text_of("config.json", "[", "[],", 1_300_000, "[]]"),
    "a config of 100,000 levels": text_of("config.json", "", "[", 100_000, "]" * 100_000),
    "a million layers": config_with(layers),
    "a million blocks": config_with(blocks),
    "a header of 8 million dimensions": header(many_dimensions),
    "a header of 150,000 tensors": header(many_tensors),
    "a header that claims 1 EB": header(nothing, 1 << 60),
    "an index of 20 MB": text_of("model.safetensors.index.json", "", " " * MB, 20),
    "a pipe as config": pipe("config.json"),
    "a pipe as weights": pipe("model.safetensors"),
    "a link to /etc/passwd": licence_link,
    "NaN in the language model": not_a_number,
    "text that grows": tokenizer_with(growing),
    "a regular expression without end": tokenizer_with(backtracking),
    "the id 4,000,000,000": tokenizer_with(far_id),
    "a manifest of 100,000 levels": manifest_text("", "[", 100_000, "]" * 100_000),
    "a manifest of 8 MB of lists": manifest_text("[", "[],", 2_600_000, "[]]"),
    "a manifest that names ../../outside": manifest_with(above),
    "a state that is a link": state_link,
    "a flipped bit in a built model": flipped,
    "a forged package": forged_package,
    "an image of 10⁸ pixels": huge_image,
    "a TAR with 1 GB of pax headers": pax,
    "a TAR that unpacks to 300 MB": tar_bomb,
    "/dev/zero as answers": device,
    "99,999,999,999 batch sizes": batches,
}
