"""A converted and built model answers as the model's own class does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from axcore.testing import answered, check_prompt, logits, user

from .conftest import CHUNK, Family, photograph, pixels

if TYPE_CHECKING:
    from axcore import Registry


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_answers_equal_the_model_class(family: Family, images: int, beyond: int) -> None:
    """Prompts of a multiple of the chunk, a token less or some more.

    Text alone, a small image, and a small one beside one that is cut into two tiles and the whole.
    Oracle: the model class, whose convolutions read the whole prompt at once.
    """
    shown = [photograph(60, 70), photograph(70, 210, 1)][:images]
    frame = len(family.runner.prepare([user(*shown, "b")]).input_ids)
    total = (frame // CHUNK + 1) * CHUNK + beyond
    prompt = family.runner.prepare([user(*shown, "b" * (total - frame + 1))])
    answer = answered(family.runner, prompt, max_new_tokens=12)
    assert len(prompt.input_ids) == total
    assert len(prompt.images["vision"]) == (0, 1, 4)[images]
    assert answer.token_ids == family.generated(prompt, 12)


def test_logits_equal_the_model_class(family: Family) -> None:
    """Behind the prompt and behind each token. Oracle: the model class."""
    prompt = family.runner.prepare([user("what", photograph(150, 160), "is it?")])
    answer = answered(family.runner, prompt, max_new_tokens=6)
    made = logits(family.runner, prompt, answer.token_ids)
    ids = torch.tensor([[*prompt.input_ids, *answer.token_ids]])
    tiles = [sample["pixel_values"] for sample in prompt.images["vision"]]
    with torch.no_grad():
        expected = family.model(input_ids=ids, **pixels(tiles)).logits[0].numpy()
    np.testing.assert_allclose(made, expected[len(prompt.input_ids) - 1 :], atol=1e-4)


def test_a_next_turn_reads_only_what_is_new(family: Family) -> None:
    """Caches are kept, and states taken up again where they were; the answer is the same.

    Oracle: the model class on the whole conversation.
    """
    first = user(photograph(70, 70, 5), "x")
    answer = answered(family.runner, [first], max_new_tokens=4)
    said = {"role": "assistant", "content": answer.text}
    prompt = family.runner.prepare([first, said, user("y")])
    second = answered(family.runner, prompt, max_new_tokens=8)
    assert second.reused_tokens > 10  # the image among them
    assert second.token_ids == family.generated(prompt, 8)


def test_a_prompt_needs_nothing_that_a_board_lacks(family: Family, registry: Registry) -> None:
    """Nor does what is said become more than text. Oracle: the modules and the ids."""
    check_prompt(family.folder, registry)
