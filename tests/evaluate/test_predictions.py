"""Prediction files. The oracle is the json module, and what is left after each step."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore import UsageError
from axcore.evaluate import PredictionFile, Predictions, keys_of, match, read_predictions

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {"prompt": "Describe this image in detail.", "seed": 1234}


def side(path: Path, **answers: str) -> Predictions:
    return Predictions(path, {name.replace("_", "."): text for name, text in answers.items()})


# Write -------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=8)),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8)),
)
def test_a_file_is_flat_sorted_and_grows(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, str], more: dict[str, str]
) -> None:
    """After every image the file holds all answers so far, over two runs, whatever characters
    names and answers have. Oracle: a dict, sorted.
    """
    path = tmp_path_factory.mktemp("predictions") / "a.json"
    expected: dict[str, str] = {}
    for answers in (first, more):
        file = PredictionFile(path, SETTINGS)
        assert file.answers == expected
        for image, answer in answers.items():
            file.record(image, answer)
            expected[image] = answer
            assert list(json.loads(path.read_bytes()).items()) == sorted(expected.items())


def test_lone_surrogates_do_not_lose_a_run(tmp_path: Path) -> None:
    """A file name that is no UTF-8 is a key like any other. Oracle: Python's own spelling of it."""
    name = os.fsdecode(b"caf\xe9.jpg")
    PredictionFile(tmp_path / "a.json", SETTINGS).record(name, "Kaffee für zwei 😀")
    assert read_predictions(tmp_path / "a.json").answers == {name: "Kaffee für zwei 😀"}
    assert "für zwei 😀" in (tmp_path / "a.json").read_text()


def test_answers_under_unknown_settings_are_not_continued(tmp_path: Path) -> None:
    """A file of another tool, or one whose settings are gone, stays as it is; an empty one is
    begun. Oracle: the bytes, and no file beside it.
    """
    (tmp_path / "a.json").write_text('{"x/1.jpg": "a cat"}')
    with pytest.raises(UsageError, match=r"1 answers, but there is no a\.json\.run\.json"):
        PredictionFile(tmp_path / "a.json", SETTINGS)
    assert (tmp_path / "a.json").read_text() == '{"x/1.jpg": "a cat"}'
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "a.json").write_text("{}")
    PredictionFile(tmp_path / "a.json", SETTINGS).record("x/0.jpg", "a dog")
    assert read_predictions(tmp_path / "a.json").answers == {"x/0.jpg": "a dog"}


def test_files_of_one_stem_are_two_runs(tmp_path: Path) -> None:
    """Each has settings and errors of its own. Oracle: the two kept apart, and read back."""
    for suffix in ("json", "txt"):
        file = PredictionFile(tmp_path / f"a.{suffix}", {"prompt": suffix})
        file.record("1.jpg", suffix)
        file.fail("2.jpg", suffix)
    for suffix in ("json", "txt"):
        file = PredictionFile(tmp_path / f"a.{suffix}", {"prompt": suffix})
        assert (file.answers, file.errors) == ({"1.jpg": suffix}, {"2.jpg": suffix})


def test_errors_lie_beside_until_there_is_an_answer(tmp_path: Path) -> None:
    """They survive a restart, cost no answer and never enter the flat file. Oracle: both files."""
    path = tmp_path / "a.json"
    file = PredictionFile(path, SETTINGS)
    file.record("1.jpg", "a cat")
    file.fail("2.jpg", "cannot be read")
    file.fail("3.jpg", "cannot be read")
    file = PredictionFile(path, SETTINGS)
    assert (file.answers, set(file.errors)) == ({"1.jpg": "a cat"}, {"2.jpg", "3.jpg"})
    file.fail("4.jpg", "is deleted later")
    file.ask_about(["1.jpg", "2.jpg", "3.jpg"])
    file.record("3.jpg", "a dog")
    assert json.loads(path.read_bytes()) == {"1.jpg": "a cat", "3.jpg": "a dog"}
    beside = json.loads((tmp_path / "a.json.run.json").read_bytes())
    assert beside == {"settings": SETTINGS, "errors": {"2.jpg": "cannot be read"}}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "a.json.run.json"]


def test_answers_to_another_question_are_not_mixed(tmp_path: Path) -> None:
    """Resuming under other settings names them; with no answer yet they may change. Oracle: the
    message.
    """
    path = tmp_path / "a.json"
    PredictionFile(path, {"prompt": "What?"})
    PredictionFile(path, SETTINGS).record("1.jpg", "a cat")
    with pytest.raises(
        UsageError, match=r"1 answers given under other settings\n  seed: then 1234, now null$"
    ):
        PredictionFile(path, {"prompt": SETTINGS["prompt"]})
    (tmp_path / "a.json.run.json").write_text("{}")
    with pytest.raises(UsageError, match="does not hold the settings and errors"):
        PredictionFile(path, SETTINGS)


def test_names_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are made absolute; base names must differ. Oracle: the working folder, the message."""
    monkeypatch.chdir(tmp_path)
    images = ["a/1.jpg", "b/2.jpg"]
    assert keys_of([*images, "/c.tar/3.jpg"], base_names=False) == {
        "a/1.jpg": f"{tmp_path}/a/1.jpg",
        "b/2.jpg": f"{tmp_path}/b/2.jpg",
        "/c.tar/3.jpg": "/c.tar/3.jpg",
    }
    assert keys_of(images, base_names=True) == {"a/1.jpg": "1.jpg", "b/2.jpg": "2.jpg"}
    with pytest.raises(UsageError, match=r"2 images share the base name `1.jpg`\n.*a/1.jpg, c/1"):
        keys_of([*images, "c/1.jpg"], base_names=True)


# Read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b'["a"]', "is no JSON object but list"),
        (b'{"a": {"text": "b"}}', "gives 'a' no text but dict"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"a": "b", "a": "c"}', "'a' appears twice"),
        (b'{"a": "\\ud83d"}', "gives 'a' no text but half a character"),
        (b'{"a": NaN}', "gives 'a' no text but float"),
        (b" " * (16 << 20) + b"{}", "at most 16777216 are read"),
    ],
)  # fmt: skip
def test_what_is_no_prediction_file(tmp_path: Path, content: bytes, message: str) -> None:
    """It is named with what is wrong, and left as it is. Oracle: the message and the bytes."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for use in (read_predictions, lambda path: PredictionFile(path, SETTINGS)):
        with pytest.raises(UsageError, match=message):
            use(path)
    assert path.read_bytes() == content


def test_a_missing_file(tmp_path: Path) -> None:
    """Oracle: the message names it."""
    with pytest.raises(UsageError, match=r"no\.json cannot be read"):
        read_predictions(tmp_path / "no.json")


# Match -------------------------------------------------------------------------------------------


def test_images_match_by_base_name(tmp_path: Path) -> None:
    """One side has paths, the other base names. Oracle: the pairs, by hand."""
    ours = Predictions(tmp_path / "a", {"x/2.jpg": "two", "y/1.jpg": "one"})
    theirs = Predictions(tmp_path / "b", {"1.jpg": "ein", "2.jpg": "zwei"})
    pairs = match([ours, theirs])
    assert list(pairs.items()) == [("1.jpg", ("one", "ein")), ("2.jpg", ("two", "zwei"))]
    assert match([ours]) == {"1.jpg": ("one",), "2.jpg": ("two",)}


def test_images_that_do_not_match(tmp_path: Path) -> None:
    """The odd ones are named per file; `common` leaves them out. Oracle: the message."""
    ours = side(tmp_path / "a.json", **{f"{i}_jpg": "" for i in range(9)})
    theirs = side(tmp_path / "b.json", **{f"{i}_jpg": "" for i in range(2, 10)})
    with pytest.raises(UsageError) as caught:
        match([ours, theirs])
    assert caught.value.message == (
        "the files do not have the same images; 7 are in all\n"
        f"  {tmp_path}/a.json has besides: 2 (0.jpg, 1.jpg)\n"
        f"  {tmp_path}/b.json has besides: 1 (9.jpg)"
    )
    assert len(match([ours, theirs], common=True)) == 7


def test_nothing_matches(tmp_path: Path) -> None:
    """No common image is an error even where only common ones are wanted; so is an empty file,
    and an ambiguous name. Oracle: the messages.
    """
    ours = side(tmp_path / "a.json", **{f"{i}_jpg": "" for i in range(9)})
    with pytest.raises(UsageError, match=r"9 \(0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 4 more\)"):
        match([ours, side(tmp_path / "b.json", x_jpg="")], common=True)
    with pytest.raises(UsageError, match=r"no image is in the file\n.*a.json: none"):
        match([side(tmp_path / "a.json")])
    twice = Predictions(tmp_path / "c.json", {"x/1.jpg": "", "y/1.jpg": ""})
    with pytest.raises(UsageError, match=r"base name `1.jpg`\n  in .*c.json: x/1.jpg, y/1.jpg"):
        match([twice])
