"""Several chains before one decoder, side outputs, and data that are no pictures."""

from __future__ import annotations

import shutil
import sys
import tarfile
from dataclasses import replace
from importlib.metadata import EntryPoint
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import axcore
from axcore import (
    Component,
    ContractError,
    ImageError,
    Port,
    Prompt,
    Registry,
    Request,
    VerificationError,
)
from axcore.backend import Place, TorchVision, with_weights
from axcore.calibration import embedded_images
from axcore.checkpoint import Checkpoint
from axcore.checkpoint.fabricate import fabricate
from axcore.evaluate import measure_vision
from axcore.graph.verify import verify_component
from axcore.pipeline.job import open_job
from axcore.pipeline.prepared import prepare
from axcore.runtime.deployment import Deployment
from axcore.runtime.engine import load_engine
from axcore.runtime.vision import VisionSessions, VisionSide
from axcore.testing.stages import run_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Array = np.ndarray[Any, Any]

FAMILY = Path(__file__).parents[1] / "third_party"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def many() -> Iterator[Any]:
    """The stand-in family's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAMILY)
        patch.setattr(sys, "dont_write_bytecode", True)
        yield __import__("axcore_plugins_manyvlm")


@pytest.fixture(scope="module")
def registry(many: Any) -> Registry:
    return Registry([EntryPoint("manyvlm", many.__name__, "axcore")])


@pytest.fixture(scope="module")
def checkpoint(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(registry.find("many-vlm").card, "tiny", tmp_path_factory.mktemp("many") / "c")


@pytest.fixture(scope="module")
def arrays(many: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five arrays, as the ear takes them, and a file that is none."""
    folder = tmp_path_factory.mktemp("arrays")
    for number in range(5):
        np.save(folder / f"{number}.npy", sound(many, number))
    (folder / "notes.txt").write_text("hello")
    return folder


def sound(many: Any, seed: int) -> Array:
    made: Array = np.random.default_rng(seed).standard_normal(many.MEL[1:], np.float32)
    return made


def converted(
    registry: Registry, checkpoint: Path, out: Path, arrays: Path | None, **more: Any
) -> Path:
    images = [*embedded_images(), *([arrays] if arrays else [])]
    axcore.convert(str(checkpoint), out, images=images, registry=registry, **more)
    return out


@pytest.fixture(scope="module")
def kit(
    registry: Registry, checkpoint: Path, arrays: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What is converted whole, from the pictures and arrays that come with it."""
    out = tmp_path_factory.mktemp("kit")
    converted(registry, checkpoint, out / "whole", arrays)
    return out


@pytest.fixture(scope="module")
def cut(
    registry: Registry, checkpoint: Path, arrays: Path, tmp_path_factory: pytest.TempPathFactory,
    many: Any,
) -> Path:  # fmt: skip
    """A bundle whose first tower is cut behind each side output."""
    cuts = {"eye": (3, 5), "bridge": (1,)}
    with pytest.MonkeyPatch.context() as patch:

        def split_graph(component: Component) -> tuple[int, ...]:
            return cuts.get(component.name, ())

        patch.setattr(many, "split_graph", axcore.hookimpl(split_graph), raising=False)
        own = Registry([EntryPoint("manyvlm", many.__name__, "axcore")])
        return converted(own, checkpoint, tmp_path_factory.mktemp("out") / "b", arrays)


@pytest.fixture(params=["whole", "cut"])
def bundle(request: pytest.FixtureRequest, kit: Path) -> Path:
    return kit / "whole" if request.param == "whole" else request.getfixturevalue("cut")


# Export and verification -------------------------------------------------------------------------


def test_every_output_is_verified(bundle: Path) -> None:
    """The report names each. Oracle: the ports of the family."""
    components = axcore.Bundle.open(bundle).manifest.components
    assert [[o["output"] for o in c.verification["outputs"]] for c in components] == [
        ["eye_rows", "deep_0", "deep_1"], ["second_rows"], ["heard", "loud"], ["ear_rows"],
    ]  # fmt: skip
    assert all(o["max_abs"] < 1e-5 for c in components for o in c.verification["outputs"])


def test_a_wrong_side_output_is_found(
    kit: Path, registry: Registry, checkpoint: Path, tmp_path: Path
) -> None:
    """Though the rows are right. Oracle: the weight that is changed on disk."""
    for name in ("Many_eye.onnx", "Many_eye.onnx.data"):
        shutil.copy(kit / "whole" / name, tmp_path)
    model = onnx.load(tmp_path / "Many_eye.onnx", load_external_data=False)
    (weight,) = (t for t in model.graph.initializer if t.name == "side.1.weight")
    offset = next(int(entry.value) for entry in weight.external_data if entry.key == "offset")
    with (tmp_path / "Many_eye.onnx.data").open("r+b") as data:
        data.seek(offset)
        data.write(bytes(64))
    request = Request.of("many-vlm", checkpoint=checkpoint)
    job = open_job(request, registry, axcore.Silent())
    feed = {"pixel_values": np.ones((1, 3, 32, 32), np.float32)}
    with job.checkpoint:
        prepared = prepare(request, registry, job)
        with pytest.raises(VerificationError, match="at the output `deep_1`"):
            verify_component(
                prepared.components[0], [tmp_path / "Many_eye.onnx"], job.checkpoint,
                prepared.tracer(), feed, dtype="float32", progress=axcore.Silent(),
            )  # fmt: skip


# Running -----------------------------------------------------------------------------------------


def in_torch(many: Any, checkpoint: Path, *names: str, **inputs: Array) -> list[Array]:
    """Run components one after the other: the oracle, which knows no runtime."""
    with Checkpoint.open(checkpoint, {}) as opened:
        state = tuple(torch.from_numpy(array) for array in inputs.values())
        for name in names:
            state = run_stages(getattr(many.vision, name)(), opened.tensor, *state)
    return [value.numpy() for value in state]


def backends(bundle: Path, registry: Registry) -> Iterator[tuple[Deployment, Any]]:
    deployment = Deployment.open(bundle, registry)
    yield deployment, VisionSessions(deployment, load_engine("onnx"), ".onnx")
    place = Place(torch.device("cpu"), torch.float32)
    yield deployment, TorchVision(deployment, with_weights(deployment), place)


def test_rows_are_those_of_their_own_chain(
    bundle: Path, registry: Registry, checkpoint: Path, many: Any
) -> None:
    """Two towers and an ear in one prompt, both backends. Oracle: the stages in torch."""
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    inputs = [many.PIXELS.graph_input(picture) for picture in pictures]
    mel = sound(many, 9)[None]
    eyes = [in_torch(many, checkpoint, "eye", pixels=pixels) for pixels in inputs[:2]]
    second = in_torch(many, checkpoint, "second", pixels=inputs[2])
    (heard,) = in_torch(many, checkpoint, "ear", "bridge", mel=mel)
    prompt = Prompt(
        np.zeros(30, np.int64), np.arange(30)[None],
        {"second": np.arange(4), "bridge": np.arange(20, 25), "eye": np.arange(5, 13)},
        {
            "eye": [{"pixel_values": p} for p in pictures[:2]],
            "second": [{"small_pixels": pictures[2]}],
            "ear": [{"mel": mel}],
        },
    )  # fmt: skip
    for deployment, model in backends(bundle, registry):
        rows = VisionSide(model, deployment.graphs).rows(prompt)
        for name, expected in (
            ("eye", [e[0] for e in eyes]),
            ("second", second),
            ("bridge", [heard]),
        ):
            joined = np.concatenate([one[0] for one in expected])
            np.testing.assert_allclose(rows[name].hidden, joined, atol=TOLERANCE)
        assert {name: set(made.added) for name, made in rows.items()} == {
            "eye": {0, 2}, "second": set(), "bridge": set(),
        }  # fmt: skip
        for port, layer in ((1, 0), (2, 2)):
            joined = np.concatenate([one[port][0] for one in eyes])
            np.testing.assert_allclose(rows["eye"].added[layer], joined, atol=TOLERANCE)


def test_fidelity_compares_every_output(bundle: Path, registry: Registry) -> None:
    """Of every chain that a picture reaches. Oracle: the names of the ports."""
    found = measure_vision(bundle, embedded_images()[0], registry=registry)
    assert {one.component for one in found.results} == {
        "eye", "eye/deep_0", "eye/deep_1", "second",
    }  # fmt: skip
    assert all(one.cosine > 0.9999 for one in found.results)


# Calibration -------------------------------------------------------------------------------------


def test_samples_of_every_file_are_what_it_receives(
    bundle: Path, many: Any, checkpoint: Path, arrays: Path
) -> None:
    """Of each chain its own data, and of a part all that the part before returns.

    Oracle: the files run one after the other; numpy reads what toolchains read.
    """
    graphs = axcore.Bundle.open(bundle).build_request.graphs
    assert {graph.samples for graph in graphs if graph.component in ("ear", "bridge")} == {5}
    assert {graph.samples for graph in graphs if graph.component in ("eye", "second")} == {
        len(embedded_images())
    }
    assert len({graph.archive for graph in graphs}) == len(graphs)
    values: dict[str, Any] = {}
    for graph in graphs:
        if graph.component in ("ear", "bridge"):
            stored = samples(bundle, graph)
            session = ort.InferenceSession(bundle / f"{graph.stem}.onnx")
            if graph.component == "ear":
                np.testing.assert_array_equal(stored["mel"], sound(many, 0)[None] / 2)
            else:
                for name, array in stored.items():
                    np.testing.assert_array_equal(array, values[name])
            names = [port.name for port in graph.outputs]
            values |= dict(zip(names, session.run(names, stored), strict=True))


def samples(bundle: Path, graph: Any) -> dict[str, Array]:
    """Return the first sample of a file as a toolchain reads it."""
    with tarfile.open(bundle / graph.archive) as archive:
        file = archive.extractfile("data_0.npy")
        assert file is not None
        made = np.load(BytesIO(file.read()), allow_pickle=True)
    if graph.calibration.format == "NumpyObject":
        return dict(made.item())
    return {graph.inputs[0].name: made}


def test_pictures_alone_do_not_calibrate_an_ear(
    registry: Registry, checkpoint: Path, tmp_path: Path
) -> None:
    """Oracle: the component's name."""
    with pytest.raises(ImageError, match="no arrays to calibrate `ear`") as raised:
        converted(registry, checkpoint, tmp_path / "out", None)
    assert ".npy" in raised.value.hint


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros((5, 8)), "float64"),
        (np.full((5, 8), np.nan, np.float32), "NaN"),
        (np.zeros((0, 8), np.float32), "empty"),
        (np.array([{}], dtype=object), "objects"),
    ],
)
def test_arrays_that_are_none_are_refused(
    registry: Registry, checkpoint: Path, tmp_path: Path, array: Any, fault: str
) -> None:
    """By file and fault, before anything is exported. Oracle: what was saved."""
    np.save(tmp_path / "odd.npy", array, allow_pickle=True)
    with pytest.raises(ImageError, match=f"odd.npy.*{fault}"):
        converted(registry, checkpoint, tmp_path / "out", tmp_path / "odd.npy")


# What a family gets wrong ------------------------------------------------------------------------


def change(name: str, /, **fields: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda found: [replace(c, **fields) if c.name == name else c for c in found]


ROWS = (1, 4, 24)
WRONG: Mapping[str, tuple[Any, str]] = {
    "an output without a layer": (
        change("second", outputs=(Port("second_rows", ROWS), Port("lost", ROWS))),
        "nothing takes the output `lost` of component `second`",
    ),
    "a layer that there is not": (
        change("second", outputs=(Port("second_rows", ROWS), Port("deep", ROWS, layer=3))),
        "deep float32 .* for layer 3 of 3",
    ),
    "rows of another shape": (
        change("second", outputs=(Port("second_rows", ROWS), Port("deep", (1, 3, 24), layer=1))),
        r"deep float32 \[1, 3, 24\]",
    ),
    "a layer twice": (
        change("second", outputs=tuple(
            Port(name, ROWS, layer=layer) for name, layer in (("a", None), ("b", 1), ("c", 1))
        )),
        "repeats the layer name 1",
    ),
    "an output that nothing takes": (
        change("bridge", inputs=(Port("heard", (1, 5, 16)),)),
        "output `loud` of component `ear` is taken by no component",
    ),
    "an input of another shape": (
        change("bridge", inputs=(Port("heard", (1, 5, 16)), Port("loud", (1, 5, 17)))),
        r"takes loud \[1, 5, 17\]",
    ),
    "behind nobody": (change("bridge", after="nose"), "comes after `nose`, which is not listed"),
    "behind another": (change("bridge", after="second"), r"`Many_second` returns second_rows"),
    "a chain's first and yet behind": (change("second", after="eye"), "takes outputs of `eye`"),
    "one name twice": (change("second", name="eye"), "repeats the component name eye"),
    "one archive twice": (
        change("second", inputs=(Port("pixel_values", (1, 3, 32, 32)),)),
        "`eye` and `second` both write pixel_values.tar",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_chains_are_checked_before_anything_is_read(
    many: Any, registry: Registry, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Oracle: the port or component that is wrong."""
    wrong, message = WRONG[fault]
    call = registry.call

    def changed(family: str, hook: str, **arguments: Any) -> Any:
        made = call(family, hook, **arguments)
        return wrong(made) if hook == "export_vision" else made

    monkeypatch.setattr(registry, "call", changed)
    with pytest.raises(ContractError, match=message):
        axcore.plan(str(checkpoint), registry=registry)
