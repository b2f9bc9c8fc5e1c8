"""Which images are asked about, and what happens where one fails."""

from __future__ import annotations

import shutil
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axcore import BudgetError, ImageError
from axcore.calibration import SourceImage
from axcore.evaluate import Question
from axcore.evaluate.images import drawn, images_to_judge, tried
from axcore.testing import Recorder

from .answering import IMAGES

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_named_as_an_image_is_not_passed_over(tmp_path: Path) -> None:
    """An empty file among good ones is found, as is an image without suffix; a note is not.

    Oracle: the list of files.
    """
    (tmp_path / "deep").mkdir()
    shutil.copy(IMAGES / "cat.jpg", tmp_path / "deep" / "cat")
    shutil.copy(IMAGES / "cat.jpg", tmp_path / "b.jpg")
    (tmp_path / "a.JPG").touch()
    (tmp_path / "note.txt").write_text("no image")
    names = [image.name for image in images_to_judge(tmp_path)]
    assert names == [str(tmp_path / name) for name in ("a.JPG", "b.jpg", "deep/cat")]


def test_a_folder_without_any_image(tmp_path: Path) -> None:
    """Refused, also where names promise some. Oracle: the message."""
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(ImageError, match="holds no JPEG, PNG or WebP image"):
        images_to_judge(tmp_path)


@given(st.integers(0, 30), st.none() | st.integers(1, 40), st.integers(0, 5))
def test_a_draw_repeats_and_keeps_the_order(total: int, count: int | None, seed: int) -> None:
    """As many as asked for, none twice, in order, the same each time. Oracle: the definition."""
    images = [SourceImage(f"{i:02}.jpg", bytes) for i in range(total)]
    names = [image.name for image in drawn(images, count, seed)]
    assert len(names) == (total if count is None else min(count, total))
    assert names == sorted(set(names))
    assert set(names) <= {image.name for image in images}
    assert names == [image.name for image in drawn(images, count, seed)]


def test_another_seed_draws_others() -> None:
    """Oracle: ten draws of 3 of 30 that are not all equal."""
    images = [SourceImage(str(i), bytes) for i in range(30)]
    draws = {tuple(p.name for p in drawn(images, 3, seed)) for seed in range(10)}
    assert len(draws) > 1


def test_errors_stay_with_their_image() -> None:
    """What an image or an engine raises is handed on; a bug of ours keeps its traceback.

    Oracle: what the work returned or raised.
    """
    images = [SourceImage(name, bytes) for name in ("good", "bad", "engine", "better")]

    def work(image: SourceImage) -> str:
        if image.name == "bad":
            raise ImageError("`bad` is torn\n  at byte 3")
        if image.name == "engine":
            raise RuntimeError("no memory")
        return image.name.upper()

    progress = Recorder()
    made = {image.name: one for image, one in tried("try", images, work, progress)}
    assert (made["good"], made["better"]) == ("GOOD", "BETTER")
    assert isinstance(made["bad"], ImageError)
    assert "no memory" in str(made["engine"])
    assert progress.warned[0] == "left out: `bad` is torn; at byte 3"
    with pytest.raises(ZeroDivisionError):
        list(tried("try", images, lambda _: 1 // 0, progress))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no GiB are free")])
def test_memory_that_one_image_lacks_is_there_for_the_next(error: Exception) -> None:
    """It costs that image alone: what its run held is let go. Oracle: a weak reference."""
    held: list[weakref.ref[Any]] = []

    def work(image: SourceImage) -> str:
        if image.name == "small":
            assert held[0]() is None
            return "done"
        large = np.zeros(1000)
        held.append(weakref.ref(large))
        raise error

    images = [SourceImage(name, bytes) for name in ("large", "small")]
    (_, failed), (_, made) = tried("try", images, work, Recorder())
    assert isinstance(failed, BudgetError)
    assert str(failed) == f"`large` does not fit into memory\n  {str(error) or 'MemoryError'}"
    assert made == "done"


def test_messages() -> None:
    """The image stands before the words, the system message before both. Oracle: the form."""
    text = {"type": "text", "text": "What?"}
    assert Question("What?").messages(None) == [{"role": "user", "content": [text]}]
    asked = Question("What?", "Be brief.").messages(SourceImage("", bytes))  # type: ignore[arg-type]
    assert [message["role"] for message in asked] == ["system", "user"]
    assert [part["type"] for part in asked[1]["content"]] == ["image", "text"]
