"""Messages to ids, and markers of tiles."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import axcore_plugins_lfm2vl as plugin
import numpy as np
import pytest
from tokenizers import Tokenizer

from axcore import CheckpointError, Job, Options, UsageError
from axcore.checkpoint import fabricate
from axcore.testing import user

from .conftest import CARD, HEIGHT, WIDTH, photograph

if TYPE_CHECKING:
    from pathlib import Path

TILE = "<image>" * 6
BEGIN, ANSWER = "<|startoftext|>", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    return fabricate(CARD, "tiny", tmp_path_factory.mktemp("checkpoint") / "folder")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def job_for(folder: Path, tiles: str = "auto") -> Job:
    """Return what prompts look at; a stand-in for the checkpoint has config and folder."""
    checkpoint: Any = SimpleNamespace(config=CARD.published.tiny_config, folder=folder)
    profile = replace(CARD.profiles["image"], height=HEIGHT, width=WIDTH)
    return Job(CARD, "lfm2vl", checkpoint, "image", profile, Options(choices={"tiles": tiles}))


SMALL = f"<|image_start|>{TILE}<|image_end|>"
LARGE = (
    f"<|image_start|><|img_row_1_col_1|>{TILE}<|img_row_1_col_2|>{TILE}<|img_row_2_col_1|>{TILE}"
    f"<|img_row_2_col_2|>{TILE}<|img_thumbnail|>{TILE}<|image_end|>"
)
CASES: dict[str, tuple[list[dict[str, Any]], str, int]] = {
    "text": ([user("what?")], f"{BEGIN}<|im_start|>user\nwhat?{ANSWER}", 0),
    "small": (
        [user(photograph(50, 60), "what?")],
        f"{BEGIN}<|im_start|>user\n{SMALL}what?{ANSWER}",
        1,
    ),
    "both": (
        [user("this", photograph(130, 200), photograph(50, 60), "and that?")],
        f"{BEGIN}<|im_start|>user\nthis{LARGE}{SMALL}and that?{ANSWER}",
        6,
    ),
    "turns": (
        [
            {"role": "system", "content": "be brief"},
            user(photograph(50, 60)),
            {"role": "assistant", "content": "a dog"},
            user("sure?"),
        ],
        f"{BEGIN}<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n{SMALL}<|im_end|>\n"
        f"<|im_start|>assistant\na dog<|im_end|>\n<|im_start|>user\nsure?{ANSWER}",
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_prompts_read_as_published(folder: Path, tokenizer: Tokenizer, name: str) -> None:
    """Oracle: what template and processor write, written out."""
    messages, text, runs = CASES[name]
    prompt = plugin.prepare_prompt(job_for(folder), messages)
    ids = tokenizer.encode(text).ids
    assert prompt.input_ids.tolist() == ids
    places = np.flatnonzero(np.array(ids) == tokenizer.token_to_id("<image>"))
    assert np.asarray(prompt.vision_rows["vision"]).tolist() == places.tolist()
    assert len(prompt.images["vision"]) == runs
    assert len(places) == runs * 6
    assert prompt.stop_ids == (7, 2)


def test_one_tile_is_the_whole_image(folder: Path, tokenizer: Tokenizer) -> None:
    """However large it is. Oracle: the text written out."""
    prompt = plugin.prepare_prompt(job_for(folder, "1"), [user(photograph(130, 200), "what?")])
    text = f"{BEGIN}<|im_start|>user\n{SMALL}what?{ANSWER}"
    assert prompt.input_ids.tolist() == tokenizer.encode(text).ids


def test_a_video_is_refused(folder: Path) -> None:
    """The model has none. Oracle: the kind of part."""
    part = {"type": "video", "video": [photograph(50, 60)]}
    with pytest.raises(UsageError, match="part of type `video`"):
        plugin.prepare_prompt(job_for(folder), [{"role": "user", "content": [part]}])


@pytest.mark.parametrize("lost", ["<|img_row_2_col_1|>", "<|image_end|>", "<|im_end|>"])
def test_a_tokenizer_without_the_markers_is_refused(
    folder: Path, tmp_path: Path, lost: str
) -> None:
    """Oracle: the marker that was taken away."""
    content = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in content["added_tokens"] if token["content"] != lost]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": kept}))
    with pytest.raises(CheckpointError, match=lost.replace("|", r"\|")):
        plugin.prepare_prompt(job_for(tmp_path), [user("what?")])
