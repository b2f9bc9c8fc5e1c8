"""A converted and built model answers as the model's own class does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from axcore import BudgetError
from axcore.runtime.masks import chunk_ends, runs
from axcore.runtime.runner import Runner
from axcore.testing import answered, check_prompt, logits, user

from .conftest import CHUNK, TOKENS, Family, photograph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from axcore import Registry


def asked(text: str, images: Sequence[Image.Image]) -> tuple[list[dict[str, Any]], str]:
    """Return a question behind images, and what the published template makes of it."""
    shown = "<start_of_image>" * len(images)
    turn = f"<start_of_turn>user\n{shown}{text}<end_of_turn>\n"
    return [user(*images, text)], f"<bos>{turn}<start_of_turn>model\n"


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_answers_equal_the_model_class(family: Family, images: int, beyond: int) -> None:
    """Prompts of a multiple of the chunk, a token less or some more; up to three images.

    An image is longer than the window, and lies across what would be the end of a chunk.

    Oracle: the model class on what its own processor makes.
    """
    shown = [photograph(60, 70 + 50 * seed, seed) for seed in range(images)]
    frame = len(family.runner.prepare(asked("b", shown)[0]).input_ids)
    total = (frame // CHUNK + 1) * CHUNK + beyond
    messages, text = asked("b" * (total - frame + 1), shown)
    prompt, given = family.runner.prepare(messages), family.given(text, shown)
    assert len(prompt.input_ids) == total
    assert prompt.input_ids.tolist() == given["input_ids"][0].tolist()
    answer = answered(family.runner, prompt, max_new_tokens=12)
    assert answer.token_ids == family.generated(given, 12)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_logits_equal_the_model_class(family: Family, registry: Registry, backend: str) -> None:
    """Behind the prompt and behind each token, with text before, between and behind two images.

    Oracle: the model class, in one run over prompt and answer.
    """
    runner = family.runner
    if backend == "torch":
        runner = Runner.open(family.folder, registry, backend, {"dtype": "float32"})
    shown = [photograph(90, 40), photograph(30, 80, 1)]
    prompt = runner.prepare([user("a", shown[0], "or", shown[1], "is it?")])
    answer = answered(runner, prompt, max_new_tokens=6)
    text = "a<start_of_image>or<start_of_image>is it?"
    given = family.given(
        f"<bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n", shown
    )
    assert prompt.input_ids.tolist() == given["input_ids"][0].tolist()
    made = logits(runner, prompt, answer.token_ids)
    new = torch.tensor([answer.token_ids])
    kinds = torch.cat([given["token_type_ids"], torch.zeros_like(new)], 1)
    with torch.no_grad():
        expected = family.model(
            input_ids=torch.cat([given["input_ids"], new], 1),
            token_type_ids=kinds,
            pixel_values=given["pixel_values"],
        ).logits[0, len(prompt.input_ids) - 1 :]
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-4)


def test_an_image_is_never_cut(family: Family) -> None:
    """Wherever text puts it; a chunk too short for one is refused. Oracle: the ends of chunks."""
    for before in range(CHUNK + 1):
        prompt = family.runner.prepare(asked("b", [photograph(30, 30)] * 2)[0])
        assert prompt.blocks is not None
        numbers = np.concatenate([np.zeros(before, np.int64), prompt.blocks])
        blocks = runs(numbers, len(numbers))
        ends = chunk_ends(0, blocks, CHUNK, 160)
        assert all(blocks[end - 1] != blocks[end] or not blocks[end] for end in ends[:-1])
        with pytest.raises(BudgetError, match=f"{TOKENS} tokens of the prompt see each other"):
            chunk_ends(0, blocks, TOKENS - 1, 160)


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
    assert second.reused_tokens > TOKENS  # the image among them
    given = family.given("<start_of_image>", shown)
    given["input_ids"] = torch.from_numpy(prompt.input_ids)[None]
    given["token_type_ids"] = (given["input_ids"] == 500).long()
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    assert second.token_ids == family.generated(given, 8)


def test_a_prompt_needs_nothing_that_a_board_lacks(family: Family, registry: Registry) -> None:
    """Nor does what is said become more than text. Oracle: the modules and the ids."""
    check_prompt(family.folder, registry)
