"""Messages to ids, markers of tiles and time stamps of frames."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import axcore_plugins_smolvlm2 as plugin
import numpy as np
import pytest
from axcore_plugins_smolvlm2.prompt import words
from tokenizers import Tokenizer
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    get_image_prompt_string,
)
from transformers.utils.chat_template_utils import render_jinja_template

from axcore import CheckpointError, Job, Options, UsageError
from axcore.checkpoint import fabricate
from axcore.testing import user

from .conftest import CARDS, photograph, processor

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

CARD = CARDS["smolvlm2-500m"]
SIDE, TOKENS = 128, 4
FAKE = "<fake_token_around_image>"
WHOLE = f"{FAKE}<global-img>{'<image>' * TOKENS}{FAKE}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    return fabricate(CARD, "tiny", tmp_path_factory.mktemp("checkpoint") / "folder")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def job_for(folder: Path, tiles: str = "2") -> Job:
    """Return what prompts look at; a stand-in for the checkpoint has config and folder."""
    checkpoint: Any = SimpleNamespace(config=CARD.published.tiny_config, folder=folder)
    profile = replace(CARD.profiles["image"], height=SIDE, width=SIDE)
    return Job(CARD, "smolvlm2", checkpoint, "image", profile, Options(choices={"tiles": tiles}))


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [user("what?")],
    "image first": [user(photograph(60, 90), "what?")],
    "text first": [user("this", photograph(90, 60), photograph(50, 50), "and that?")],
    "turns": [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        user(photograph(50, 50), "what?"),
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
        user("sure?"),
    ],
}


@pytest.mark.parametrize("tiles", ["1", "2", "4"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_read_as_the_processor_writes_them(
    folder: Path, tokenizer: Tokenizer, name: str, tiles: str
) -> None:
    """Oracle: the published template, and transformers' text and tiles of an image."""
    messages = CONVERSATIONS[name]
    rendered: Any = render_jinja_template(
        [messages], chat_template=DEFAULT_CHAT_TEMPLATE, add_generation_prompt=True
    )
    before, *after = rendered[0][0].split("<image>")
    shown: list[Image.Image] = [
        part["image"] for m in messages for part in m["content"] if part["type"] == "image"
    ]
    text, runs = before, 0
    for image, rest in zip(shown, after, strict=True):
        made = processor(SIDE, int(tiles))([[image]], return_row_col_info=True)
        (rows,), (columns,) = made["rows"][0], made["cols"][0]
        runs += rows * columns + 1
        markers = (FAKE, "<image>", "<global-img>")
        written: Any = get_image_prompt_string
        text += written(rows, columns, TOKENS, *markers) + rest
    prompt = plugin.prepare_prompt(job_for(folder, tiles), messages)
    ids = tokenizer.encode(text).ids
    assert prompt.input_ids.tolist() == ids
    places = np.flatnonzero(np.array(ids) == tokenizer.token_to_id("<image>"))
    assert np.asarray(prompt.vision_rows["vision"]).tolist() == places.tolist()
    assert len(prompt.images["vision"]) == runs
    assert len(places) == runs * TOKENS
    assert prompt.stop_ids == (tokenizer.token_to_id("<end_of_utterance>"),)


def asked(fps: float, count: int) -> list[dict[str, Any]]:
    video = {"type": "video", "video": [photograph(50, 70, i) for i in range(count)], "fps": fps}
    return [{"role": "user", "content": [video, {"type": "text", "text": "what?"}]}]


def test_a_video_has_time_stamps(folder: Path, tokenizer: Tokenizer) -> None:
    """Three frames, one in 45 seconds. Oracle: the processor's sentences, written out."""
    prompt = plugin.prepare_prompt(job_for(folder), asked(1 / 45, 3))
    text = (
        "<|im_start|>User: You are provided the following series of three frames from a 0:02:15"
        f" [H:MM:SS] video.\n\nFrame from 00:00:{WHOLE}\nFrame from 00:45:{WHOLE}"
        f"\nFrame from 01:30:{WHOLE}\n\nwhat?<end_of_utterance>\nAssistant:"
    )
    assert prompt.input_ids.tolist() == tokenizer.encode(text).ids
    assert len(prompt.images["vision"]) == 3


def test_numbers_are_spelt() -> None:
    """Oracle: English."""
    spelt = {1: "one", 12: "twelve", 19: "nineteen", 20: "twenty", 47: "forty-seven"}
    assert {number: words(number) for number in spelt} == spelt
    assert words(64) == "sixty-four"
    assert len({words(number) for number in range(65)}) == 65


@pytest.mark.parametrize(("fps", "count"), [(1.0, 0), (1.0, 65), (0.0, 1)])
def test_a_video_without_frames_or_time_is_refused(folder: Path, fps: float, count: int) -> None:
    """Oracle: what was given."""
    messages = asked(fps, min(count, 1))
    messages[0]["content"][0]["video"] *= count
    with pytest.raises(UsageError, match=f"a video of {count} frames"):
        plugin.prepare_prompt(job_for(folder), messages)


@pytest.mark.parametrize("lost", ["<row_2_col_1>", "<global-img>", "<end_of_utterance>"])
def test_a_tokenizer_without_the_markers_is_refused(
    folder: Path, tmp_path: Path, lost: str
) -> None:
    """Oracle: the marker that was taken away."""
    content = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in content["added_tokens"] if token["content"] != lost]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": kept}))
    with pytest.raises(CheckpointError, match=lost):
        plugin.prepare_prompt(job_for(tmp_path), [user("what?")])
