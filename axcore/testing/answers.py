"""What a converted and built model answers, to be held against its own class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..language_model import Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image

    from ..runtime.runner import Answer, Runner
    from ..runtime.sampling import Sampling


def user(*parts: str | Path | Image) -> dict[str, Any]:
    """Return a user's message of text and images, in order; a path is an image."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def answered(
    runner: Runner,
    messages: Sequence[Mapping[str, Any]] | Prompt,
    sampling: Sampling | None = None,
    max_new_tokens: int | None = None,
) -> Answer:
    """Return a whole answer, from its first token to the last.

    Args:
        runner: The model.
        messages: The conversation, or the prompt that `runner.prepare` made of it.
        sampling: How tokens are chosen; None takes the likeliest, as an oracle would.
        max_new_tokens: At most so many; None goes on while there is room.
    """
    from ..runtime.runner import Answer

    prompt, answer = messages, Answer()
    if not isinstance(prompt, Prompt):
        prompt = runner.prepare(prompt)
    for _ in runner.answer(prompt, sampling, max_new_tokens, answer):
        pass
    return answer


def logits(runner: Runner, prompt: Prompt, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """Return float32 ``[1 + tokens, vocabulary]``: behind the prompt, and behind each token.

    All of the prompt is read, whatever the runner has read before, and none of it is remembered.
    """
    import numpy as np

    runner.forget()
    language, length = runner.language, len(prompt.input_ids)
    language.resume(0, length)
    blocks = () if prompt.blocks is None else (prompt.blocks,)
    made = [language.prefill(runner.rows(prompt)[None], prompt.position_ids, *blocks)]
    start = int(prompt.position_ids.max()) + 1  # less than `length` where an image spans few
    for position, token in enumerate(tokens, start):
        made.append(language.decode(runner.embeddings.rows(np.array([token])), position))
    return np.concatenate(made)
