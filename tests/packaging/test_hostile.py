"""Bundles as a stranger might send them: refused by name of file and entry, or harmless."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import axcore
from axcore import AxcoreError, BundleError, ToolchainError
from axcore.bundle import MANIFEST, Bundle, Manifest
from axcore.runtime.deployment import Deployment
from axcore.step import BUILD, STATE
from axcore.workspace import Workspace

from . import toys

if TYPE_CHECKING:
    from collections.abc import Iterator

WRONG: list[Any] = [
    *(None, True, -1, 0, 1.5, 1e308, 10**30, "", "x", "-x", "../x", "/x", "a b;c", "\x1b[2J", "\0"),
    *([], [None], [[]], [-1], ["x"], {}, {"x": None}, {"x": {}}, {"../x": {"size": 1}}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in JSON."""
    yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return JSON with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def refusals(bundle: Path) -> list[BundleError]:
    """Open a bundle and return why it is refused, if it is."""
    try:
        opened = Bundle.open(bundle)
        _ = opened.files, opened.graphs, opened.manifest.dump()
        opened.check_files(set())
    except BundleError as error:
        return [error]
    return []


def full(bundle: Path) -> dict[str, Any]:
    """Return a manifest in which every field is present."""
    component = {
        "name": "v",
        "inputs": [{"name": "x", "shape": [1], "dtype": "float32", "layer": None}],
        "outputs": [],
        "stages": ["s"],
    }
    return {
        **Bundle.open(bundle).manifest.data(),
        "components": [{**component, "findings": [{"op": "Add"}], "verification": {"cosine": 1.0}}],
        "calibration_archive": {"name": "a.tar", "source": "a.tar", "sha256": "1" * 64},
        "versions": {"python": "3.11"},
    }


def test_no_manifest_ends_in_a_traceback(bundle: Path) -> None:
    """Every value in it replaced by every kind of wrong one, then opened, and described to a tool.

    Oracle: it is read, or refused with the file, the place in it, and a remedy.
    """
    content, path = full(bundle), bundle / MANIFEST
    refused: list[BundleError] = []
    for number, place in enumerate(places(content)):
        for wrong in WRONG[number % 4 :: 4]:  # neighbours have much in common
            path.write_text(json.dumps(changed(content, place, wrong)))
            refused += refusals(bundle)
    assert len(refused) > 500
    for error in refused:
        assert error.message.startswith(str(bundle))
        assert error.hint
        assert "\x1b" not in error.message


def test_a_manifest_is_written_as_it_was_read(bundle: Path) -> None:
    """Oracle: the JSON."""
    content = full(bundle)
    (bundle / MANIFEST).write_text(json.dumps(content))
    assert Manifest.read(bundle / MANIFEST).data() == content


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("place", ["profile", "embedding", "llm", "decoder_layers", "choices"])
def test_no_deployment_ends_in_a_traceback(bundle: Path, place: str, wrong: Any) -> None:
    """What running reads of a manifest. Oracle: the errors that users are meant to see."""
    content = full(bundle)
    where = {
        "profile": ("model", "profile", "prefill_len"),
        "embedding": ("embedding", "shape"),
        "llm": ("build", "llm", "kv_cache_len"),
        "decoder_layers": ("build", "decoder_layers"),
        "choices": ("options", "choices"),
    }[place]
    (bundle / MANIFEST).write_text(json.dumps(changed(content, where, wrong)))
    with suppress(AxcoreError):
        Deployment.open(bundle, toys.registry()).layer_files(".axmodel")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("generation_config.json", {"eos_token_id": 1.5}),
        ("generation_config.json", {"eos_token_id": [1, 2.0]}),
        ("generation_config.json", {"eos_token_id": -1}),
        ("generation_config.json", {"eos_token_id": "<end>"}),
        ("generation_config.json", {"eos_token_id": [[1]]}),
        ("generation_config.json", {"eos_token_id": True}),
        ("generation_config.json", {"eos_token_id": {"a": 1}}),
        ("generation_config.json", [1]),
        ("config.json", {"architectures": ["BoardToy"], "eos_token_id": "x"}),
        ("config.json", {"architectures": ["BoardToy"], "text_config": {"eos_token_id": [0.5]}}),
    ],
)
def test_end_tokens_are_numbers(bundle: Path, file: str, content: Any) -> None:
    """Anything else is refused, with file and entry."""
    text = json.dumps(content).encode()
    (bundle / file).write_bytes(text)
    toys.change_manifest(bundle, files={file: toys.stamp(text)})
    with pytest.raises(BundleError, match=file.replace(".", r"\.")) as caught:
        Deployment.open(bundle, toys.registry())
    assert "eos_token_id" in caught.value.message or "settings" in caught.value.message


# Variables ---------------------------------------------------------------------------------------


def test_a_manifest_sets_no_variable(bundle: Path, tmp_path: Path) -> None:
    """Nothing in a bundle reaches the environment of a tool. Oracle: a tool that writes it down."""
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\nenv >> {tmp_path}/env\n")
    tool.chmod(0o755)
    written = json.loads((bundle / MANIFEST).read_text())
    written["build"]["llm"]["environment"] = {"LD_PRELOAD": "./evil.so", "EVIL": "1"}
    (bundle / MANIFEST).write_text(json.dumps(written))
    with pytest.raises(ToolchainError, match="no language-model builder"):
        axcore.build(bundle, command=str(tool), registry=toys.registry())
    assert "evil" not in (tmp_path / "env").read_text().lower()


# What a build made -------------------------------------------------------------------------------


def record(bundle: Path, suffix: str = ".axmodel") -> None:
    """Let a step have made the models of a toy bundle, which stay as they are."""

    def make(folder: Path) -> None:
        for name in toys.built(suffix):
            (bundle / name).rename(folder / name)

    workspace = Workspace(bundle, toys.MODEL, f"{BUILD}pulsar2")
    with workspace.locked():
        workspace.run("llm", {}, make)
        workspace.publish()


@pytest.mark.parametrize("name", toys.built(".axmodel"))
def test_a_flipped_byte_in_a_built_model_is_noticed(bundle: Path, name: str) -> None:
    """Of equal size and time. Oracle: the file named, and the command that replaces it."""
    record(bundle)
    axcore.package(bundle, bundle.parent / "whole", runtime="python", registry=toys.registry())
    path = bundle / name
    content, times = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.unlink()  # the package has links to it
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(BundleError, match=f"{name} has another content") as caught:
        axcore.package(bundle, bundle.parent / "board", runtime="python", registry=toys.registry())
    assert f"axcore build {bundle} --toolchain pulsar2" in caught.value.hint


def test_models_that_were_copied_here_are_taken(bundle: Path) -> None:
    """Without records nothing is known of them, and nothing is claimed. Oracle: the package."""
    assert not (bundle / STATE / f"{BUILD}pulsar2").exists()
    out = bundle.parent / "board"
    axcore.package(bundle, out, runtime="python", registry=toys.registry())
    assert (out / toys.layer(0)).is_file()


def test_checking_writes_nothing_behind_a_link(bundle: Path, tmp_path: Path) -> None:
    """Where the state folder leads elsewhere. Oracle: that folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (bundle / STATE).symlink_to(elsewhere)
    with pytest.raises(BundleError, match="is a link; a state folder holds none"):
        Deployment.open(bundle, toys.registry())
    assert not list(elsewhere.iterdir())


def test_a_file_of_the_bundle_is_no_link_out_of_it(bundle: Path, tmp_path: Path) -> None:
    """Though it has the content that the manifest lists. Oracle: the name in the message."""
    (bundle / "tokenizer.json").rename(tmp_path / "secret")
    (bundle / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match=r"'tokenizer\.json' is a link that leads out"):
        Deployment.open(bundle, toys.registry())


# What a build reads ------------------------------------------------------------------------------


class Reader:
    """A toolchain that reads a graph, what lies beside it, and a configuration."""

    name, options, targets = "reader", {}, {}  # type: ignore[var-annotated]

    def target(self, options: Any) -> Any:
        del options

    def reads(self, request: Any, name: str) -> bool:
        del request
        return ".onnx" in name

    def build(self, build: Any) -> None:
        paths = sorted(build.folder.glob(f"{toys.STEM}.*"))
        build.step("s", {"files": {path.name: path for path in paths}}, lambda _: None)


def built_by_reader(bundle: Path) -> list[str]:
    """Build with `Reader`; return the warnings."""
    from axcore.testing import Recorder

    registry, progress = toys.registry(), Recorder()
    registry.__dict__["toolchains"] = {**registry.toolchains, "reader": Reader()}
    axcore.build(bundle, toolchain="reader", registry=registry, progress=progress)
    return progress.warned


def test_an_edited_configuration_is_built_from_and_said(onnx_bundle: Path) -> None:
    """By name; an untouched one is not. Oracle: the warnings."""
    assert built_by_reader(onnx_bundle) == []
    name = f"{toys.STEM}.pulsar2.json"
    (onnx_bundle / name).write_text('{"mine": 1}')
    (said,) = built_by_reader(onnx_bundle)
    assert said.startswith(f"{name} is not as `axcore convert` wrote it")


def test_a_graph_that_is_not_the_conversions_is_not_built(onnx_bundle: Path) -> None:
    """Changed, or not in the manifest at all. Oracle: the name in the message."""
    graph = onnx_bundle / f"{toys.STEM}.onnx"
    graph.write_bytes(b"other")
    with pytest.raises(BundleError, match=f"{graph.name} has another content"):
        built_by_reader(onnx_bundle)
    graph.write_bytes(b"graph")
    (onnx_bundle / f"{toys.STEM}.onnx.extra").write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"onnx\.extra, which `axcore convert` did not write"):
        built_by_reader(onnx_bundle)


def test_the_layers_of_a_manifest_are_counted_first(bundle: Path) -> None:
    """A million million of them. Oracle: refused before a list is made."""
    opened = Bundle.open(bundle).manifest
    many = replace(opened, build=replace(opened.build, decoder_layers=10**12))
    (bundle / MANIFEST).write_text(many.dump())
    with pytest.raises(BundleError, match=r"build\.decoder_layers: 1000000000000 is not between"):
        Bundle.open(bundle)
