"""What a bundle is run from: its parts, found and held against the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from axcore import BundleError, ContractError, LlmBuildArgs, PluginNotFound, Registry
from axcore.bundle import CHECKSUMS
from axcore.runtime.deployment import Deployment
from axcore.runtime.engine import load_engine
from axcore.runtime.vision import VisionSessions

from ..built import CACHE, CHUNK, HEAD, HEIGHT, HISTORIES, LAYER, TABLE, WIDTH
from ..bundles import STEM, change_json, list_again

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.fixture
def deployment(own: Path, registry: Registry) -> Deployment:
    return Deployment.open(own, registry)


def test_a_bundle_says_what_it_is(deployment: Deployment, own: Path) -> None:
    """Oracle: the arguments of its conversion and the tiny checkpoint's config."""
    config = json.loads((own / "config.json").read_text())
    llm = deployment.llm
    assert (llm.prefill_len, llm.kv_cache_len, llm.last_kv_cache_len) == (CHUNK, CACHE, HISTORIES)
    assert deployment.layers == config["num_hidden_layers"]
    assert deployment.embedding.shape == (config["vocab_size"], config["hidden_size"])
    assert [graph.stem for graph in deployment.graphs] == [STEM]
    assert (deployment.job.profile.height, deployment.job.profile.width) == (HEIGHT, WIDTH)
    assert (deployment.job.card.id, deployment.job.family) == ("qwen2.5-vl-3b", "qwen25vl")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [3, 4]}, {"eos_token_id": 5}, {3, 4, 5}),
        ({"eos_token_id": 3}, {"text_config": {"eos_token_id": [6, 3]}}, {3, 6}),
        (None, {"llm_config": {"eos_token_id": 7}, "eos_token_id": None}, {7}),
        ({}, {"text_config": None}, set()),
    ],
)
def test_every_configured_end_stops(
    own: Path, registry: Registry, generation: Any, config: dict[str, Any], expected: set[int]
) -> None:
    """A number or a list, in the generation file, the config and its nested parts."""
    base = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    (own / "config.json").write_text(json.dumps({**base, **config}))
    path = own / "generation_config.json"
    path.unlink() if generation is None else path.write_text(json.dumps(generation))
    list_again(own, "config.json", path.name)
    assert Deployment.open(own, registry).stop_ids == expected


def test_layers_come_in_their_order(deployment: Deployment, own: Path) -> None:
    """By number, not by name: 10 behind 9. Files of another chunk length beside them are left."""
    for index in range(12):
        (own / LAYER.format(index)).write_bytes(b"")
        (own / LAYER.format(index).replace("_p64_", "_p32_")).write_bytes(b"")
    layers, head = replace(deployment, layers=12).layer_files(".onnx")
    assert layers == [own / LAYER.format(index) for index in range(12)]
    assert head == own / HEAD


def test_missing_layers_are_counted_and_the_first_named(deployment: Deployment, own: Path) -> None:
    """With the command that makes them."""
    (own / HEAD).unlink()
    with pytest.raises(BundleError, match=r"3 layer models are missing .*_l2_together") as caught:
        replace(deployment, layers=4).layer_files(".onnx")
    assert f"run `axcore build {own} --toolchain onnx`" in caught.value.hint
    assert "--backend torch" in caught.value.hint


def test_files_of_other_models_are_none_of_its_own(deployment: Deployment, own: Path) -> None:
    """The lengths of the manifest decide, and one kind there must be; what is there is listed."""
    other = replace(deployment, llm=LlmBuildArgs(128, CACHE))
    with pytest.raises(BundleError, match=r"128 tokens \(p128\)\n  it has: qwen2_5_vl_p64"):
        other.layer_files(".onnx")
    (own / LAYER.format(0).replace("qwen2_5_vl", "llama")).write_bytes(b"")
    with pytest.raises(BundleError, match=r"one set .*\n  it has: llama_p64, qwen2_5_vl_p64"):
        deployment.layer_files(".onnx")


def test_a_board_needs_compiled_models(deployment: Deployment, own: Path) -> None:
    """The hint names the toolchain that makes those."""
    with pytest.raises(BundleError, match=r"has no layer models \(\*_together.axmodel\)") as caught:
        deployment.layer_files(".axmodel")
    assert caught.value.hint == f"run `axcore build {own} --toolchain pulsar2`"
    with pytest.raises(BundleError, match=rf"{STEM}.axmodel is missing"):
        deployment.vision_file(deployment.graphs[0], ".axmodel")
    assert deployment.vision_file(deployment.graphs[0], ".onnx") == own / f"{STEM}.onnx"


def test_an_embedding_of_another_size(deployment: Deployment, own: Path) -> None:
    """Shape and both sizes are in the message; two bytes a value."""
    assert deployment.embedding_file == own / TABLE
    (own / TABLE).write_bytes(bytes(10))
    expected = r"has 10 bytes; \[512, 64\] in bfloat16 has 65536"
    with pytest.raises(BundleError, match=expected):
        _ = deployment.embedding_file
    (own / TABLE).unlink()
    with pytest.raises(BundleError, match="is missing"):
        _ = deployment.embedding_file


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", TABLE, f"{STEM}.onnx", f"{STEM}.onnx.data"],
)
def test_a_foreign_file_is_refused(own: Path, registry: Registry, name: str) -> None:
    """Of equal size, so that nothing else would tell. Oracle: the byte that was changed."""
    deployment = Deployment.open(own, registry)  # notes what it has seen

    def read_all(deployment: Deployment) -> None:
        _ = deployment.embedding_file
        for graph in deployment.graphs:
            deployment.vision_file(graph, ".onnx")

    read_all(deployment)
    with (own / name).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(BundleError, match=f"{name} has another content") as caught:
        read_all(Deployment.open(own, registry))
    assert "axcore convert" in caught.value.hint


def test_what_was_seen_is_not_read_again(own: Path, registry: Registry, hashed: list[str]) -> None:
    """A table of gigabytes costs nothing twice; where nothing can be noted it is read each time.

    Oracle: the files that are hashed.
    """
    seen = own / CHECKSUMS
    seen.unlink(missing_ok=True)
    for expected in ([TABLE], [], [TABLE]):
        hashed.clear()
        _ = Deployment.open(own, registry).embedding_file
        assert [name for name in hashed if name == TABLE] == expected
        if not expected:  # from here on it cannot be written
            seen.unlink()
            seen.mkdir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": None}, "holds only the vision side"),
        ({"embedding": {"key": "e"}}, "shape: missing"),
        ({"model": {"id": "qwen2.5-vl-3b", "task": "image"}}, "profile"),
        ({"model": ["qwen2.5-vl-3b"]}, "model: .* is not of type Mapping"),
    ],
)
def test_a_manifest_that_does_not_say_enough(
    own: Path, registry: Registry, changes: dict[str, Any], message: str
) -> None:
    """The folder and what is missing are in the message."""
    change_json(own / "axcore.json", **changes)
    with pytest.raises(BundleError, match=message) as caught:
        Deployment.open(own, registry)
    assert str(own) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_generation_settings_that_cannot_be_read(
    own: Path, registry: Registry, content: str
) -> None:
    """Otherwise an answer might never end."""
    (own / "generation_config.json").write_text(content)
    list_again(own, "generation_config.json")
    with pytest.raises(BundleError, match=r"generation_config\.json (cannot|holds no)"):
        Deployment.open(own, registry)


def test_a_family_that_is_not_installed(own: Path) -> None:
    """The model's name is in the message."""
    with pytest.raises(PluginNotFound, match=r"qwen2\.5-vl-3b"):
        Deployment.open(own, Registry([]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda name, array: {name: array[:-1]}, r"uint8 \[\d+, \d+, 3\] for input"),
        (lambda name, array: {"other": array}, "nothing for input"),
    ],
)
def test_a_sample_of_another_size(deployment: Deployment, change: Any, found: str) -> None:
    """Refused before an engine sees it, with both sizes. Oracle: the port of the graph."""
    (graph,) = deployment.graphs
    (port,) = graph.inputs
    pixels = np.zeros((*port.shape[2:], 3), np.uint8)
    model = VisionSessions(deployment, load_engine("onnx"), ".onnx")
    assert model.features({port.name: pixels})["vision"].size
    with pytest.raises(ContractError, match=f"a prompt's sample has {found}") as caught:
        model.features(change(port.name, pixels))
    assert f"expected: uint8 {[*port.shape[2:], 3]}" in caught.value.message
