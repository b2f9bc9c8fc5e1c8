"""Features against a reference. The oracles are arithmetic on the graph's own output."""

from __future__ import annotations

import math
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from axcore import (
    AxcoreError,
    BudgetError,
    BundleError,
    Choice,
    GraphError,
    ImageError,
    Registry,
    UsageError,
    hookimpl,
)
from axcore.evaluate import dumped_features, measure_vision
from axcore.evaluate.images import Question, images_to_judge
from axcore.runtime.backends import EngineBackend
from axcore.testing import Recorder

from .answering import IMAGES, STEM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axcore import Sample
    from axcore.runtime.deployment import Deployment

SHIFT = 0.25  # added to every feature by the shifted backend


class Shifted(EngineBackend):
    """The engine of a PC, with features that are off by an option."""

    def __init__(self) -> None:
        super().__init__("onnx", ".onnx")
        self.name = "shifted"
        self.options = {"shift": Choice((str(SHIFT), "0.5"), "what is added")}

    def availability(self) -> Any:
        return EngineBackend("onnx", ".onnx").availability()

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> Any:
        vision = EngineBackend("onnx", ".onnx").vision(deployment, {})
        return _Off(vision, float(options["shift"]))


class _Off:
    def __init__(self, model: Any, shift: float) -> None:
        self.model, self.shift = model, shift

    def open(self) -> None:
        self.model.open()

    def features(self, sample: Sample, first: str = "") -> dict[str, Any]:
        made = self.model.features(sample, first)
        return {name: array + self.shift for name, array in made.items()}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The installed families, and a plugin with the shifted backend."""
    module = ModuleType("axcore_plugins_shifted")
    module.backends = hookimpl(lambda: [Shifted()], specname="backends")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    family = EntryPoint("qwen25vl", "axcore_plugins_qwen25vl", "axcore")
    return Registry([family, EntryPoint("shifted", module.__name__, "axcore")])


@pytest.fixture(scope="module")
def features(model: Path) -> dict[str, Any]:
    """Features of every embedded image, by base name: float32 ``[1, tokens, width]``."""
    from axcore.runtime.deployment import Deployment

    deployment = Deployment.open(model, Registry())
    vision = EngineBackend("onnx", ".onnx").vision(deployment, {})
    found = {}
    for image in images_to_judge(IMAGES):
        messages = Question().messages(image.load())
        prompt = deployment.hook("prepare_prompt", job=deployment.job, messages=messages)
        (sample,) = prompt.images["vision"]
        found[Path(image.name).name] = vision.features(sample)["vision"]
    return found


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    """One sample of noise, to calibrate with."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).standard_normal((1, 3, 48, 392), np.float32)
        self._samples = iter([{"hidden_states": noise}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._samples, None)


def test_a_backend_against_another(
    model: Path, registry: Registry, features: dict[str, Any]
) -> None:
    """Every image and component, the worst first. Oracle: signal and shift, by hand."""
    found = measure_vision(model, IMAGES, backend="shifted", against="onnx", registry=registry)
    assert {Path(one.image).name for one in found.results} == set(features)
    for one in found.results:
        signal = features[Path(one.image).name].astype(np.float64)
        expected = 10 * math.log10(float((signal**2).mean()) / SHIFT**2)
        assert one.component == "vision"
        assert one.max_abs == pytest.approx(SHIFT, rel=1e-3)
        assert one.snr_db == pytest.approx(expected, abs=1e-3)
    ratios = [one.snr_db for one in found.results]
    assert ratios == sorted(ratios)
    assert found.skipped == {}


def test_the_checkpoint_in_torch_is_the_reference(model: Path) -> None:
    """The exported graph computes what the modules do, to float32's precision.

    Oracle: PyTorch, with the weights that the bundle was made from.
    """
    found = measure_vision(model, IMAGES)
    assert found.skipped == {}
    assert all(one.cosine > 0.999999 and one.snr_db > 80 for one in found.results)


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [({}, {}, 0), ({"shift": "0.5"}, {}, 0.25), ({}, {"shift": "0.5"}, 0.25)],
)
def test_each_side_has_its_own_options(
    model: Path, registry: Registry, ours: dict[str, str], theirs: dict[str, str], apart: float
) -> None:
    """A backend compared with itself under other options differs. Oracle: the shifts."""
    found = measure_vision(
        model, IMAGES / "cat.jpg", backend="shifted", against="shifted", options=ours,
        reference_options=theirs, registry=registry,
    )  # fmt: skip
    assert found.results[0].max_abs == pytest.approx(apart, rel=1e-3)


def test_the_reference_stays_in_float32(model: Path) -> None:
    """Whatever precision is judged by it. Oracle: bfloat16's 8 bits are worth less than 60 dB."""
    (found,) = measure_vision(
        model, IMAGES / "cat.jpg", backend="torch", against="torch", options={"dtype": "bfloat16"}
    ).results
    assert 10 < found.snr_db < 60


def test_an_option_that_a_side_lacks(model: Path, registry: Registry, tmp_path: Path) -> None:
    """Is refused, even if the other has it; files have none. Oracle: the messages."""
    (tmp_path / "vision").mkdir()
    shift, onnx = {"shift": "0.5"}, model / f"{STEM}.onnx"
    for given, message in (
        ({"backend": "onnx", "against": "shifted", "options": shift}, "`onnx` has no option"),
        ({"backend": "shifted", "reference_options": shift}, "`onnx` has no option"),
        ({"against": "shifted", "onnx": [onnx], "options": shift}, "files has no option --shift"),
        ({"features": tmp_path, "options": shift}, "comparison of files has no option --shift"),
    ):
        arguments: dict[str, Any] = {"against": "onnx", "registry": registry, **given}
        with pytest.raises(UsageError, match=message):
            measure_vision(model, IMAGES, **arguments)


def test_a_quantised_file(model: Path, registry: Registry, tmp_path: Path) -> None:
    """In place of the graph with its ports: a copy is equal, one in 8 bits is near.

    Oracle: equality, and that 8 bits are no more than 8 bits: at most 50 dB.
    """
    exact = tmp_path / "copy.onnx"
    shutil.copy(model / f"{STEM}.onnx", exact)
    shutil.copy(model / f"{STEM}.onnx.data", tmp_path)
    quantised = tmp_path / "quantised.onnx"
    quantize_static(
        exact, quantised, _Noise(), weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt16, op_types_to_quantize=["MatMul", "Gemm"],
    )  # fmt: skip
    found = {
        path: measure_vision(
            model, IMAGES / "cat.jpg", onnx=[path], against="onnx", registry=registry
        ).results[0]
        for path in (exact, quantised)
    }
    assert found[exact].snr_db == math.inf
    assert 10 < found[quantised].snr_db < 50
    assert 0.9 < found[quantised].cosine < 1


def test_a_file_that_does_not_fit(model: Path, registry: Registry, tmp_path: Path) -> None:
    """The hint is about the file named, not about the bundle; of another graph, the ports are
    named beside those of the bundle's. Oracle: the messages.
    """
    (head,) = model.glob("*_post.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("nothing")
    for path, error, message, hint in (
        (head, GraphError, "(?s)matches no graph.*hidden_states", "inputs and outputs"),
        (tmp_path / "missing.onnx", UsageError, "there is no file .*missing", "with --onnx"),
        (tmp_path, UsageError, "there is no file", "with --onnx"),
        (text, GraphError, "text.onnx cannot be loaded by ONNX Runtime", "name an ONNX file"),
    ):
        expected: type[AxcoreError] = error
        with pytest.raises(expected, match=message) as raised:
            measure_vision(model, IMAGES, onnx=[path], against="onnx", registry=registry)
        assert hint in raised.value.hint


def test_features_from_elsewhere(
    model: Path, registry: Registry, features: dict[str, Any], tmp_path: Path
) -> None:
    """Dumps are matched by base name; a missing one leaves its image out.

    Oracle: what was dumped: the reference, halved for one image.
    """
    for name, array in features.items():
        path = dumped_features(tmp_path, "vision", name)
        path.parent.mkdir(exist_ok=True)
        np.save(path, array / 2 if name == "cat.jpg" else array)
    (tmp_path / "vision" / "rocket.jpg.npy").unlink()
    found = measure_vision(model, IMAGES, features=tmp_path, against="onnx", registry=registry)
    assert Path(found.results[0].image).name == "cat.jpg"
    assert found.results[0].cosine == pytest.approx(1)
    assert found.results[0].snr_db == pytest.approx(20 * math.log10(2))
    assert all(one.snr_db == math.inf for one in found.results[1:])
    assert [Path(name).name for name in found.skipped] == ["rocket.jpg"]
    assert len(found.results) == len(features) - 1


def test_no_reference_is_run_without_features(
    model: Path, registry: Registry, tmp_path: Path
) -> None:
    """A folder that is missing stops all, a missing dump its image; what came later would be
    lost work. Oracle: what a reference is asked for, and the warnings.
    """
    asked, recorder = [], Recorder()

    def features(self: _Off, sample: Sample, first: str = "") -> dict[str, Any]:
        asked.append(sample)
        return self.model.features(sample, first)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Off, "features", features)
        how: dict[str, Any] = {"against": "shifted", "registry": registry, "progress": recorder}
        with pytest.raises(UsageError, match="missing is no folder") as raised:
            measure_vision(model, IMAGES, features=tmp_path / "missing", **how)
        assert recorder.warned == []
        assert "missing/vision/photo.jpg.npy" in raised.value.hint
        (tmp_path / "vision").mkdir()
        with pytest.raises(UsageError, match="cannot be read as features"):
            measure_vision(model, IMAGES / "cat.jpg", features=tmp_path, **how)
    assert asked == []
    assert len(recorder.warned) == 1


def test_a_side_that_does_not_open(model: Path, registry: Registry, tmp_path: Path) -> None:
    """Is told of once, not for every image: a file is missing, or memory for a petabyte.

    Oracle: the errors, and that there is no warning.
    """
    recorder, bundle = Recorder(), tmp_path / "bundle"
    shutil.copytree(model, bundle)
    (bundle / f"{STEM}.onnx").unlink()
    with pytest.raises(BundleError, match=f"{STEM}.onnx is missing"):
        measure_vision(bundle, IMAGES, against="onnx", registry=registry, progress=recorder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Off, "open", lambda _: np.empty(1 << 50, np.uint8))
        with pytest.raises(BudgetError, match=r"does not fit into memory\n  Unable to allocate"):
            measure_vision(model, IMAGES, against="shifted", registry=registry, progress=recorder)
    assert recorder.warned == []


def test_nothing_to_compare(model: Path, registry: Registry, tmp_path: Path) -> None:
    """No dump at all, two ways at once, no such backend, no image. Oracle: the messages."""
    for arguments, error, message in (
        ({"features": tmp_path}, UsageError, "has no folder vision"),
        ({"features": tmp_path, "onnx": [tmp_path]}, UsageError, "both given"),
        ({"backend": "nothing"}, UsageError, "no backend `nothing`"),
        ({"images": tmp_path}, ImageError, "holds no JPEG"),
    ):
        given: dict[str, Any] = {"images": IMAGES, "against": "onnx", **arguments}
        expected: type[AxcoreError] = error
        with pytest.raises(expected, match=message):
            measure_vision(model, registry=registry, **given)
