"""Answers about a folder of images. The oracle is a model opened anew for every image."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import axcore
from axcore import AxcoreError, BudgetError, CheckpointError, Registry, UsageError
from axcore.evaluate import Captions, PredictionFile, Question, write_captions
from axcore.evaluate.images import images_to_judge
from axcore.runtime.runner import Answer, Runner
from axcore.runtime.sampling import Sampling
from axcore.testing import Recorder, answered

if TYPE_CHECKING:
    pass

from ..built import message
from ..bundles import Interrupted, change_json, change_tensors, shard_of
from .answering import IMAGES

CAPTIONS = Captions(Question("Say."), Sampling(), 6)
NAMES = ("astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg")
NORM = "model.norm.weight"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images to change."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(IMAGES / name, folder)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, str]:
    """Answers of a model that has been asked nothing before."""
    return {
        name: answered(axcore.load(model), [message("Say.", IMAGES / name)], max_new_tokens=6).text
        for name in NAMES
    }


def write(model: Path, images: Path, out: Path, **changes: Any) -> PredictionFile:
    return write_captions(model, images, out, **{"captions": CAPTIONS, **changes})


def test_answers_do_not_depend_on_those_before(
    model: Path, images: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """One model for all images says what a new one says of each; the file has it all.

    Oracle: `expected`, whose answers differ.
    """
    assert len(set(expected.values())) > 1
    out = tmp_path / "a.json"
    file = write(model, images, out, base_names=True)
    assert file.answers == expected
    assert json.loads(out.read_text()) == expected
    paths = write(model, images, tmp_path / "b.json").answers
    assert paths == {str(images / name): text for name, text in expected.items()}


def test_nothing_of_an_image_before_is_used(model: Path, images: Path) -> None:
    """Equal beginnings are read anew, so that a resumed run rounds as an uninterrupted one.

    Oracle: the tokens kept where nothing is forgotten.
    """
    runner, (image, *_) = Runner.open(model, Registry()), images_to_judge(images)
    CAPTIONS.ask(runner, image)
    prompt, answer = runner.prepare(CAPTIONS.question.messages(image.load())), Answer()
    next(runner.answer(prompt, answer=answer))
    assert answer.reused_tokens == len(prompt.input_ids) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "answer", partial(runner.answer, answer=answer))
        CAPTIONS.ask(runner, image)
    assert answer.reused_tokens == 0


def test_an_interrupted_run_goes_on_where_it_was(
    model: Path, images: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """After two of four images the file holds two, and the next run asks about two.

    Oracle: `expected`, and a third run that finds nothing to do and loads no model.
    """
    out = tmp_path / "a.json"
    with pytest.raises(KeyboardInterrupt):
        write(model, images, out, base_names=True, progress=Interrupted(2, "answer"))
    names = sorted(expected)
    assert json.loads(out.read_text()) == {name: expected[name] for name in names[:2]}
    progress = Recorder()
    assert write(model, images, out, base_names=True, progress=progress).answers == expected
    assert progress.said == ["2 of 4 images have their answers already"]
    damaged = Path(shutil.copytree(model, tmp_path / "bundle"))
    for path in damaged.glob("*_together.onnx"):
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = out.stat().st_mtime_ns
    assert write(damaged, images, out, base_names=True).answers == expected
    assert out.stat().st_mtime_ns == before


def test_a_bad_image_costs_no_other(
    model: Path, images: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """An empty and a torn file are noted with the reason, and asked again once mended; taken away,
    they are no errors any more.

    Oracle: `expected` for the rest, and then for all.
    """
    whole = (images / "cat.jpg").read_bytes()
    (images / "cat.jpg").write_bytes(whole[:2000])
    (images / "coffee.jpg").write_bytes(b"")
    out = tmp_path / "a.json"
    file = write(model, images, out, base_names=True)
    good = {name: text for name, text in expected.items() if name[0] != "c"}
    assert file.answers == good
    assert set(file.errors) == {"cat.jpg", "coffee.jpg"}
    assert "cannot be read as an image" in file.errors["coffee.jpg"]
    assert json.loads((tmp_path / "a.json.run.json").read_text())["errors"] == file.errors
    shutil.copytree(images, tmp_path / "fewer", ignore=shutil.ignore_patterns("c*"))
    file = write(model, tmp_path / "fewer", out, base_names=True)
    assert (file.answers, file.errors) == (good, {})
    assert json.loads((tmp_path / "a.json.run.json").read_text())["errors"] == {}
    (images / "cat.jpg").write_bytes(whole)
    shutil.copy(IMAGES / "coffee.jpg", images)
    file = write(model, images, out, base_names=True)
    assert (file.answers, file.errors) == (expected, {})


def test_a_folder_is_the_same_however_it_is_spelt(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, absolute, through a link, or one image of it. Oracle: names and number of the
    answers, and what each run says it found.
    """
    monkeypatch.chdir(tmp_path)
    out, progress = tmp_path / "a.json", Recorder()
    (tmp_path / "link").symlink_to(images)
    shutil.copytree(images, tmp_path / "linked")
    shutil.copy(images / "cat.jpg", tmp_path / "blob")
    (images / "cat.jpg").unlink()
    (images / "cat.jpg").symlink_to(tmp_path / "blob")
    for source in ("images/cat.jpg", "images", "./linked/../images/", images, "link"):
        file = write(model, Path(source), out, progress=progress)
    assert set(file.answers) == {str(path) for path in images.iterdir()}
    assert progress.said == [
        "1 of 4 images have their answers already",
        *["4 of 4 images have their answers already"] * 3,
    ]


def test_names_that_no_comparison_takes(model: Path, images: Path, tmp_path: Path) -> None:
    """Two images of one base name are warned of, and answered. Oracle: both in the message."""
    (images / "deep").mkdir()
    shutil.copy(images / "cat.jpg", images / "deep")
    progress = Recorder()
    assert len(write(model, images, tmp_path / "a.json", progress=progress).answers) == 5
    (warning,) = progress.warned
    assert "2 images share the base name `cat.jpg`" in warning
    assert f"{images}/cat.jpg, {images}/deep/cat.jpg" in warning


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to change, with a checkpoint of its own in `checkpoint` beside it."""
    bundle = Path(shutil.copytree(model, tmp_path / "bundle"))
    checkpoint = json.loads((bundle / "axcore.json").read_text())["checkpoint"]
    folder = str(shutil.copytree(checkpoint["folder"], tmp_path / "checkpoint"))
    change_json(bundle / "axcore.json", checkpoint={**checkpoint, "folder": folder})
    return bundle


def build_anew(bundle: Path) -> None:
    axcore.build(bundle, toolchain="onnx", options={"weight-type": "bf16"})


def touch_layers(bundle: Path) -> None:
    for path in bundle.glob("*_together.onnx"):
        path.touch()


def write_report(bundle: Path) -> None:
    (bundle / "speed.csv").touch()


def train_checkpoint(bundle: Path) -> None:
    shard = shard_of(bundle.with_name("checkpoint"), NORM)
    change_tensors(shard, lambda tensors: tensors[NORM].add_(1))


@pytest.mark.parametrize(
    ("backend", "unread", "read", "error"),
    [
        ("onnx", write_report, build_anew, UsageError),
        ("onnx", train_checkpoint, touch_layers, UsageError),
        ("torch", touch_layers, train_checkpoint, CheckpointError),
    ],
)
def test_answers_of_other_weights_are_not_mixed(
    own: Path, images: Path, backend: str, unread: Any, read: Any, error: type[AxcoreError]
) -> None:
    """Answers go on only with the weights of before: those of the same build for an engine, those
    of the checkpoint for torch. What is not read may change, the file with the answers among it.
    Oracle: the file.
    """
    out = own / "a.json"
    run = partial(write, own, images, out, backend=backend)
    assert len(run(sample=1).answers) == 1
    unread(own)
    assert len(run(sample=2).answers) == 2
    before = out.read_bytes()
    read(own)
    with pytest.raises(error, match=r"2 answers given under other settings|checkpoint has changed"):
        run()
    assert out.read_bytes() == before


@pytest.mark.parametrize("change", ["prompt", "base names", "bundle"])
def test_answers_of_other_settings_are_not_mixed(
    model: Path, images: Path, tmp_path: Path, change: str
) -> None:
    """Another question, other names or another conversion need another file. Oracle: the file."""
    out = tmp_path / "a.json"
    write(model, images, out, sample=1)
    before = out.read_bytes()
    changes: dict[str, Any] = {}
    if change == "prompt":
        changes["captions"] = Captions(Question("Why?"), CAPTIONS.sampling, 6)
    elif change == "base names":
        changes["base_names"] = True
    else:
        model = Path(shutil.copytree(model, tmp_path / "bundle"))
        (model / "axcore.json").write_text((model / "axcore.json").read_text() + "\n")
    with pytest.raises(UsageError, match="given under other settings"):
        write(model, images, out, **changes)
    assert out.read_bytes() == before


def test_where_every_image_fails(model: Path, tmp_path: Path) -> None:
    """A question that is too long fails the run and writes no file. Oracle: the message."""
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.png")
    captions = Captions(Question("word " * 200))
    with pytest.raises(BudgetError, match="this build allows 96"):
        write_captions(model, tmp_path, tmp_path / "a.json", captions)
    assert not (tmp_path / "a.json").exists()
