"""What the calibration of a graph in several parts costs, and what it writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from axcore import ContractError, Registry, Request
from axcore.calibration import embedded_images, images
from axcore.pipeline.flow import Flow
from axcore.pipeline.job import open_job
from axcore.pipeline.prepared import prepare
from axcore.progress import Silent
from axcore_plugins_qwen25vl.preprocess import IMAGE_CALIBRATION

from ..bundles import MODEL, STEM, contents, convert

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

PARTS = 4
IMAGES = len(embedded_images())


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each whole-file read and decoding of an image and each run of ONNX Runtime.

    The functions that do it are wrapped, not replaced. A list, because several threads add to it.
    """
    done: list[str] = []
    read, whole, decode = images._read, images.read_bytes, images.decode
    run = ort.InferenceSession.run

    def noted_read(path: Path, offset: int, size: int) -> bytes:
        if size > 16:  # less is a look at the format
            done.append("read")
        return read(path, offset, size)

    def noted_whole(path: Path, limit: int) -> bytes:
        done.append("read")
        return whole(path, limit)

    def noted_decode(data: bytes, upright: bool, stack: ExitStack) -> Any:
        done.append("decode")
        return decode(data, upright, stack)

    def noted_run(self: Any, *arguments: Any, **named: Any) -> Any:
        done.append("run")
        return run(self, *arguments, **named)

    monkeypatch.setattr(images, "_read", noted_read)
    monkeypatch.setattr(images, "read_bytes", noted_whole)
    monkeypatch.setattr(images, "decode", noted_decode)
    monkeypatch.setattr(ort.InferenceSession, "run", noted_run)
    return done


def test_the_work_grows_with_images_and_parts_alone(
    checkpoint: Path, tmp_path: Path, work: list[str]
) -> None:
    """Oracle: the arithmetic. N images are each read to identify, to check and to preprocess them
    and decoded for the last two; N samples pass the P - 1 parts that have one behind them.

    A part that lost a sample is calibrated again from the samples of the part before: N runs, and
    no image is preprocessed. Oracle for what it writes: the bytes of the first run.
    """
    folder = convert(checkpoint, tmp_path / "out", split=PARTS, verify=False).folder
    runs = (PARTS - 1) * IMAGES
    assert Counter(work) == {"read": 3 * IMAGES, "decode": 2 * IMAGES, "run": runs}

    before = contents(folder)
    (folder / f"calib_{STEM}_part3_data" / "data_4.npy").unlink()
    work.clear()
    convert(checkpoint, folder, split=PARTS, verify=False)
    assert Counter(work) == {"read": 2 * IMAGES, "decode": IMAGES, "run": IMAGES}
    assert contents(folder) == before


def test_samples_are_what_the_parts_before_return(checkpoint: Path, tmp_path: Path) -> None:
    """In float16, whose images are stored as uint8. Oracle: the files run one after the other."""
    folder = convert(checkpoint, tmp_path / "out", split=3, verify=False, dtype="float16").folder
    for number in range(IMAGES):
        with Image.open(folder / f"calib_vision_data/data_{number}.png") as image:
            feed = IMAGE_CALIBRATION.graph_input(np.asarray(image)[..., ::-1]).astype(np.float16)
        for part in (1, 2):
            session = ort.InferenceSession(folder / f"{STEM}_part{part}.onnx")
            (feed,) = session.run(None, {session.get_inputs()[0].name: feed})
            stored = np.load(folder / f"calib_{STEM}_part{part + 1}_data/data_{number}.npy")
            assert stored.dtype == np.float16
            np.testing.assert_array_equal(stored, feed)


def test_a_sample_of_another_size_is_refused_when_verifying(checkpoint: Path) -> None:
    """Before ONNX Runtime sees it, by plugin and hook. Oracle: the port that is a row short."""
    request, registry = Request.of(MODEL, checkpoint=str(checkpoint)), Registry()
    prepared = prepare(request, registry, open_job(request, registry, Silent()))
    (component,) = prepared.components
    assert component.preprocess

    def short(shown: Any) -> list[Any]:
        return [{n: array[1:] for n, array in sample.items()} for sample in made(shown)]

    made = component.preprocess
    prepared = replace(prepared, components=(replace(component, preprocess=short),))
    flow = Flow(prepared, lambda _, graph: checkpoint / graph.stem)
    with pytest.raises(ContractError, match=r"(?s)`qwen25vl`.*make_calib: .* has uint8 \["):
        next(flow.feeds(0, flow.chosen(())))
