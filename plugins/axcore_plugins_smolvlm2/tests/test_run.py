"""A converted and built model answers as the model's own class does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from axcore.testing import answered, check_prompt, logits, user

from .conftest import CHUNK, SIDES, Family, photograph

if TYPE_CHECKING:
    from collections.abc import Callable

    from axcore import Registry

SPLIT = 2  # tiles along the longer side, as the checkpoints' image processors say


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("name", SIDES)
def test_answers_equal_the_model_class(
    families: Callable[[str], Family], name: str, images: int, beyond: int
) -> None:
    """Prompts of a multiple of the chunk, a token less or some more; up to two images in tiles.

    Oracle: the model class on what its own image processor makes.
    """
    family = families(name)
    shown = [photograph(60, 70 + 50 * seed, seed) for seed in range(images)]
    frame = len(family.runner.prepare([user(*shown, "b")]).input_ids)
    total = (frame // CHUNK + 1) * CHUNK + beyond
    prompt = family.runner.prepare([user(*shown, "b" * (total - frame + 1))])
    answer = answered(family.runner, prompt, max_new_tokens=12)
    assert len(prompt.input_ids) == total
    assert answer.token_ids == family.generated(prompt.input_ids, 12, **family.pixels(shown, SPLIT))


def test_logits_equal_the_model_class(family: Family) -> None:
    """Behind the prompt and behind each token, with a tall image in 2 x 1 tiles and the whole.

    Oracle: the model class.
    """
    shown = [photograph(90, 40)]
    prompt = family.runner.prepare([user("what", *shown, "is it?")])
    answer = answered(family.runner, prompt, max_new_tokens=6)
    assert len(prompt.vision_rows["vision"]) == 3 * 4
    made = logits(family.runner, prompt, answer.token_ids)
    ids = torch.tensor([[*prompt.input_ids, *answer.token_ids]])
    with torch.no_grad():
        expected = family.model(input_ids=ids, **family.pixels(shown, SPLIT)).logits[0].numpy()
    np.testing.assert_allclose(made, expected[len(prompt.input_ids) - 1 :], atol=1e-4)


def test_a_video_answers_as_the_model_class(family: Family) -> None:
    """Four frames, each whole. Oracle: the model class on the processor's whole images."""
    frames = [photograph(60, 80, seed) for seed in range(4)]
    video: dict[str, Any] = {"type": "video", "video": frames, "fps": 0.5}
    content = [video, {"type": "text", "text": "?"}]
    prompt = family.runner.prepare([{"role": "user", "content": content}])
    answer = answered(family.runner, prompt, max_new_tokens=12)
    assert len(prompt.vision_rows["vision"]) == 4 * 4
    assert answer.token_ids == family.generated(prompt.input_ids, 12, **family.pixels(frames, 1))


def test_a_next_turn_reads_only_what_is_new(family: Family) -> None:
    """The second question keeps what the caches hold of the first, and answers the same.

    Oracle: the model class on the whole conversation.
    """
    shown = [photograph(70, 70, 5)]
    first = user(*shown, "x")
    answer = answered(family.runner, [first], max_new_tokens=4)
    said = {"role": "assistant", "content": answer.text}
    prompt = family.runner.prepare([first, said, user("y")])
    second = answered(family.runner, prompt, max_new_tokens=8)
    assert second.reused_tokens > 20  # the image among them
    expected = family.generated(prompt.input_ids, 8, **family.pixels(shown, SPLIT))
    assert second.token_ids == expected


def test_a_prompt_needs_nothing_that_a_board_lacks(family: Family, registry: Registry) -> None:
    """Nor does what is said become more than text. Oracle: the modules and the ids."""
    check_prompt(family.folder, registry)
