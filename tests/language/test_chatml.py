"""Conversations in ChatML, and the frames of videos."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from axcore import Control, Rows, UsageError, chatml, read_video, timed_steps, trimmed

IMAGE = Rows("<image>", 1)
FRAME = Image.new("RGB", (4, 4))
said = st.text(" \n\tab", max_size=4)
pieces = st.lists(said | said.map(Control) | st.just(IMAGE), max_size=5)


def written(content: list[Any]) -> str:
    return "".join(p if isinstance(p, str) else getattr(p, "text", "<image>") for p in content)


@given(content=pieces)
def test_a_message_is_trimmed_as_a_whole(content: list[Any]) -> None:
    """White space goes at both ends, across pieces; what a piece is stays. Oracle: `str.strip`."""
    kept = trimmed(content)
    assert written(kept) == written(content).strip()
    assert [p for p in kept if p is IMAGE] == [p for p in content if p is IMAGE]


def test_a_system_message_may_have_to_come_first() -> None:
    """Otherwise it stands where it is. Oracle: the roles, in order."""
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    texts = [piece.text for piece in chatml(messages, lambda _: ()) if isinstance(piece, Control)]
    begun = [text for text in texts if text.startswith("<|im_start|>")]
    assert begun == [f"<|im_start|>{role}\n" for role in ("user", "system", "assistant")]
    with pytest.raises(UsageError, match="message 2 is a system message"):
        list(chatml(messages, lambda _: (), system_anywhere=False))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "2", None])
def test_a_rate_that_is_none_is_refused(fps: object) -> None:
    """Positions and times follow from it. Oracle: numbers above 0."""
    with pytest.raises(UsageError, match="fps"):
        read_video({"type": "video", "video": [FRAME], "fps": fps}, 2.0)


@pytest.mark.parametrize("video", [[], "frames", None])
def test_a_video_has_frames(video: object) -> None:
    """Oracle: the words of the message."""
    with pytest.raises(UsageError, match="without frames"):
        read_video({"type": "video", "video": video}, 2.0)


def test_a_step_stands_in_the_middle_of_its_frames() -> None:
    """Two frames a step at two a second; the last has one. Oracle: by hand."""
    part = {"type": "video", "video": [FRAME] * 5}
    found = [(seconds, len(frames)) for seconds, frames in timed_steps(part, 2.0, 2)]
    assert found == [(0.25, 2), (1.25, 2), (2.0, 1)]
