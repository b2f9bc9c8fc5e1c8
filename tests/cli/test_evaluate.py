"""`axcore evaluate`: what the commands print, write and return."""

from __future__ import annotations

import json
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from axcore import Registry
from axcore.evaluate import dumped_features

from ..bundles import Axcore
from ..evaluate import toy
from ..evaluate.answering import IMAGES

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS_THAT_RUN_A_MODEL = ("captions", "vision", "throughput")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one of them damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("cat.jpg", "coffee.jpg"):
        shutil.copy(IMAGES / name, folder)
    (folder / "empty.jpg").touch()
    return folder


def answers(path: Path, **given: str) -> Path:
    path.write_text(json.dumps({f"{name}.jpg": text for name, text in given.items()}))
    return path


# Captions ----------------------------------------------------------------------------------------


def test_captions(axcore: Axcore, model: Path, images: Path, tmp_path: Path) -> None:
    """Answers are written, the damaged image is told of, and the exit code says so.

    Oracle: the file, and the same run as JSON.
    """
    out = tmp_path / "a.json"
    arguments = (
        "evaluate", "captions", model, "--images", images, "-p", "Say", "--max-new-tokens", 4,
        "--base-names", "-o", out,
    )  # fmt: skip
    first = axcore(*arguments)
    assert (first.code, first.out) == (1, f"{out}: 2 answers, 1 errors\n")
    assert "warning: left out:" in first.err
    assert "empty.jpg" in first.err
    again = axcore(*arguments, "--json")
    data = json.loads(again.out)
    assert data["answers"] == json.loads(out.read_text())
    assert set(data["answers"]) == {"cat.jpg", "coffee.jpg"}
    assert set(data["errors"]) == {"empty.jpg"}
    assert "2 of 3 images have their answers already" in again.err
    (images / "empty.jpg").unlink()
    last = axcore(*arguments)
    assert (last.code, last.out) == (0, f"{out}: 2 answers, 0 errors\n")


@pytest.mark.parametrize("command", COMMANDS_THAT_RUN_A_MODEL)
def test_whatever_a_backend_declares_can_be_given(
    axcore: Axcore, model: Path, impatient: str, tmp_path: Path, command: str
) -> None:
    """The options of a plugin's backend reach it from every command that runs a model.

    Oracle: what a stand-in says it was opened with.
    """
    own = {
        "captions": ("--images", IMAGES, "-o", tmp_path / "a.json"),
        "vision": ("--images", IMAGES, "--against", "onnx"),
        "throughput": ("--batch-sizes", 1, "-o", tmp_path / "t.csv", "--no-plot"),
    }
    done = axcore(
        "evaluate", command, model, "--backend", impatient, "--patience", 5, *own[command],
        "--mood=-1",
    )  # fmt: skip
    assert done.code == 1
    assert "opened with {'patience': '5', 'mood': '-1'}" in done.err


def test_options_of_the_reference(axcore: Axcore, model: Path, impatient: str) -> None:
    """Of the two backends of a comparison, each is given its own. Oracle: the same stand-in, and
    the message about an option that the compared one lacks.
    """
    arguments = ("evaluate", "vision", model, "--images", IMAGES, "--against", impatient)
    done = axcore(*arguments, "--against-patience", 5, "--against-mood", "calm")
    assert "opened with {'patience': '5', 'mood': 'calm'}" in done.err
    done = axcore(*arguments, "--mood", "calm")
    assert done.code == 2
    assert "backend `onnx` has no option --mood" in done.err


@pytest.mark.parametrize("command", COMMANDS_THAT_RUN_A_MODEL)
def test_help_tells_of_backends_and_their_options(axcore: Axcore, command: str) -> None:
    """Every embedded backend is named, and where options of backends are listed.

    Oracle: the registry, and what doctor prints.
    """
    shown = axcore("evaluate", command, "--help").out
    for name in Registry([]).backends:
        assert re.search(rf"\b{name}\b", shown.partition("--backend")[2])
    assert "see `axcore doctor`" in " ".join(shown.split())
    assert "options: --device, --dtype" in axcore("doctor").out


# The judge ---------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A tiny judge."""
    return toy.write(tmp_path / "clip")


def test_clip_score(axcore: Axcore, images: Path, clip: Path, tmp_path: Path) -> None:
    """Means, the images that differ most, and a verdict; two images show nothing. The exit
    code tells of the one left out.

    Oracle: the scores in JSON, whose means and differences are worked out here.
    """
    one = answers(tmp_path / "one.json", cat="the cat", coffee="a cup", empty="nothing")
    two = answers(tmp_path / "two.json", cat="the dog", coffee="a cup", empty="nothing")
    arguments = ("evaluate", "clip-score", one, two, "--images", images, "--clip", clip)
    done = axcore(*arguments, "--json")
    assert done.code == 1
    data = json.loads(done.out)
    assert set(data["skipped"]) == {"empty.jpg"}
    scores: dict[str, list[float]] = data["scores"]
    for side, path in enumerate((one, two)):
        values = [pair[side] for pair in scores.values()]
        assert data["means"][str(path)] == pytest.approx(sum(values) / 2)
    assert scores["coffee.jpg"][0] == scores["coffee.jpg"][1]
    assert data["most_different"][0]["name"] == "cat.jpg"
    assert data["comparison"]["verdict"] == "no difference shown"
    text = axcore(*arguments).out
    assert f"{data['means'][str(one)]:.6f}" in text
    assert "2 images, 1 left out" in text
    assert "no difference shown (" in text.splitlines()[-1]
    (images / "empty.jpg").unlink()
    shutil.copy(IMAGES / "rocket.jpg", images / "empty.jpg")
    assert axcore(*arguments).code == 0


def test_a_verdict(axcore: Axcore, clip: Path, tmp_path: Path) -> None:
    """Six images that lean one way are enough, whichever file comes first.

    Oracle: the order of the means; the answers are chosen so that every image leans alike.
    """
    names = [path.stem for path in IMAGES.glob("*.jpg")]
    files = [
        answers(tmp_path / f"{text}.json", **dict.fromkeys(names, text)) for text in ("cat", "og")
    ]
    arguments = ("--images", IMAGES, "--clip", clip)
    data = json.loads(axcore("evaluate", "clip-score", *files, *arguments, "--json").out)
    differences = [first - second for first, second in data["scores"].values()]
    assert len({value > 0 for value in differences}) == 1
    better = differences[0] > 0
    text = axcore("evaluate", "clip-score", *files, *arguments).out.splitlines()[-1]
    assert text.startswith(f"{files[0]} is {'better' if better else 'worse'} than {files[1]} (")
    assert "95% interval" in text
    arguments = (*arguments, "--confidence", "0.925")
    text = axcore("evaluate", "clip-score", *files[::-1], *arguments).out.splitlines()[-1]
    assert "92.5% interval" in text
    assert text.startswith(f"{files[1]} is {'worse' if better else 'better'} than {files[0]} (")


def test_a_hint_names_options_that_there_are(axcore: Axcore, clip: Path, tmp_path: Path) -> None:
    """Where the judge's vocabulary is missing. Oracle: the command's own help."""
    for vocabulary in clip.glob("*.gz"):
        vocabulary.unlink()
    one = answers(tmp_path / "one.json", cat="the cat")
    done = axcore("evaluate", "clip-score", one, "--images", IMAGES, "--clip", clip)
    hint = done.err.partition("hint: ")[2]
    named = set(re.findall(r"--[a-z][a-z-]*", hint))
    assert named
    assert named <= set(re.findall(r"--[a-z-]+", axcore("evaluate", "clip-score", "--help").out))


def test_one_file_is_scored_alone(axcore: Axcore, clip: Path, tmp_path: Path) -> None:
    """There is nothing to compare it with. Oracle: the output's lines."""
    one = answers(tmp_path / "one.json", cat="the cat")
    done = axcore("evaluate", "clip-score", one, "--images", IMAGES, "--clip", clip)
    assert done.out.splitlines()[2:] == ["1 images, 0 left out"]


def test_files_about_other_images(axcore: Axcore, clip: Path, tmp_path: Path) -> None:
    """Refused before gigabytes are read; --common judges the rest. Oracle: the messages."""
    one = answers(tmp_path / "one.json", cat="a", coffee="b")
    two = answers(tmp_path / "two.json", cat="a")
    arguments = ("--images", IMAGES, "--clip", clip)
    done = axcore("evaluate", "clip-score", one, two, *arguments)
    assert done.code == 2
    assert "has besides: 1 (coffee.jpg)" in done.err
    done = axcore("evaluate", "clip-score", one, two, *arguments, "--common")
    assert "1 images, 0 left out" in done.out


def test_agreement(axcore: Axcore, tmp_path: Path) -> None:
    """The share, and where answers part, in words. Oracle: the texts."""
    one = answers(tmp_path / "one.json", a="a red cat", b="same", c="a dog")
    two = answers(tmp_path / "two.json", a="a red dog", b="same", c="a dog")
    done = axcore("evaluate", "agreement", one, two)
    assert done.out.splitlines()[0] == "2 of 3 answers are equal (66.7%)"
    assert done.out.splitlines()[-1].split() == ["a.jpg", "2", "'", "cat'", "'", "dog'"]
    data = json.loads(axcore("evaluate", "agreement", one, two, "--json").out)
    assert (data["equal"], data["count"]) == (2, 3)
    assert data["divergences"][0]["position"] == 2


def test_agreement_in_tokens(axcore: Axcore, model: Path, tmp_path: Path) -> None:
    """With the model's tokenizer; a long list is cut. Oracle: the number of lines, the count."""
    texts = {f"p{i}": f"word {i}" for i in range(12)}
    one = answers(tmp_path / "one.json", **texts)
    two = answers(tmp_path / "two.json", **dict.fromkeys(texts, "other"))
    done = axcore("evaluate", "agreement", one, two, "--tokenizer", model)
    lines = done.out.splitlines()
    assert lines[0] == "0 of 12 answers are equal (0.0%)"
    assert (len(lines), lines[-1]) == (13, "and 2 more")


# Vision ------------------------------------------------------------------------------------------


def test_vision(axcore: Axcore, model: Path, images: Path) -> None:
    """Equal sides in text and JSON, which has no number for infinity; the damaged one is skipped.

    Oracle: a backend against itself.
    """
    arguments = ("evaluate", "vision", model, "--images", images, "--against", "onnx")
    text = axcore(*arguments)
    assert text.code == 1
    assert text.out.splitlines()[0].split() == [
        "IMAGE", "COMPONENT", "COSINE", "MAX", "ABS", "SNR", "[dB]",
    ]  # fmt: skip
    assert text.out.splitlines()[1].split()[1:] == ["vision", "1.000000", "0", "inf"]
    data = json.loads(axcore(*arguments, "--json").out)
    assert [one["snr_db"] for one in data["results"]] == ["inf", "inf"]
    assert list(data["skipped"]) == [str(images / "empty.jpg")]
    (images / "empty.jpg").unlink()
    assert axcore(*arguments).code == 0


def test_vision_of_one_thing_at_a_time(axcore: Axcore, model: Path, tmp_path: Path) -> None:
    """A backend and files at once are refused. Oracle: the message."""
    done = axcore(
        "evaluate", "vision", model, "--images", IMAGES, "--backend", "onnx",
        "--features", dumped_features(tmp_path, "vision", "a").parent,
    )  # fmt: skip
    assert done.code == 2
    assert "give one of --backend, --onnx and --features" in done.err


# Throughput --------------------------------------------------------------------------------------


def test_throughput(axcore: Axcore, batched_model: Path, tmp_path: Path) -> None:
    """Table on the terminal and as CSV, JSON and plot beside it. Oracle: each other."""
    out = tmp_path / "t.csv"
    done = axcore(
        "evaluate", "throughput", batched_model, "--image", IMAGES / "cat.jpg", "-p", "a",
        "--batch-sizes", "1-2,4", "--output-len", 3, "-o", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = out.read_text().splitlines()
    assert [line.split()[0] for line in done.out.splitlines()] == ["batch", "1", "2", "4"]
    assert [line.split(",")[0] for line in lines] == ["batch", "1", "2", "4"]
    assert done.out.splitlines()[3].split() == lines[3].split(",")
    assert len(json.loads(out.with_suffix(".json").read_text())["measurements"]) == 3
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_throughput_without_matplotlib(
    axcore: Axcore, batched_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install before anything is measured; --no-plot needs nothing.

    Oracle: the files.
    """
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = (
        "evaluate", "throughput", batched_model, "-p", "a", "--batch-sizes", 1, "--output-len", 2,
    )  # fmt: skip
    done = axcore(*arguments, "-o", tmp_path / "a.csv")
    assert done.code == 1
    assert "a plot needs matplotlib" in done.err
    assert not (tmp_path / "a.csv").exists()
    done = axcore(*arguments, "-o", tmp_path / "b.csv", "--no-plot", "--mindie-columns")
    assert (done.code, done.err.count("error")) == (0, 0)
    assert "fisrt_token_time(ms)" in (tmp_path / "b.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "1-"], "--batch-sizes '1-' is no list of numbers"),
        (["--input-lens", "a"], "--input-lens 'a' is no list of numbers"),
        (["--batch-sizes", "3-1"], "--batch-sizes '3-1' has no numbers"),
        (["--batch-sizes", "1-99999999999"], "is no list of numbers"),
        (["--batch-sizes", "1-999999999"], "has too many numbers"),
        (["--batch-sizes", "1-600,1-600"], "has too many numbers"),
        (["--batch-sizes", "9" * 5000], "is no list of numbers"),
        (["--batch-sizes", "1", "--input-lens", "999999999"], "a prompt of 999999999 tokens"),
        (["--batch-sizes", "1-10"], "--toolchain onnx --dynamic-batch"),
    ],
)
def test_throughput_refuses(
    axcore: Axcore, model: Path, tmp_path: Path, arguments: list[Any], message: str
) -> None:
    """Wrong numbers, and batches, where the remedy is a command. Oracle: messages, no file."""
    done = axcore("evaluate", "throughput", model, "-p", "a", "-o", tmp_path / "t.csv", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "t.csv").exists()
