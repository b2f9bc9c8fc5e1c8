"""Transformers' own class as the oracle of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ..component import Sample
    from ..language_model import Prompt


def transformers_answers(
    checkpoint: Path,
    prompt: Prompt,
    count: int,
    inputs: Callable[[Sequence[Sample]], Mapping[str, Any]],
) -> list[int]:
    """Return the likeliest tokens behind a prompt, one after the other, in float32.

    The class is the first of ``architectures``; nothing that lies in the checkpoint is executed.

    Args:
        checkpoint: A folder in the layout that transformers reads.
        prompt: What a family's `prepare_prompt` returned.
        count: How many tokens.
        inputs: Turns the samples of all images, as `make_calib` yields them, into the class's
            further arguments. Not called where there are none.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(checkpoint, dtype=torch.float32).eval()
    samples = [sample for made in prompt.images.values() for sample in made]
    further = inputs(samples) if samples else {}
    ids = torch.tensor(prompt.input_ids)[None]
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            **further,
        )
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens
