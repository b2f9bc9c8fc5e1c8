"""Transformers' own class as the oracle of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ..language_model import Prompt


def transformers_answers(
    checkpoint: Path,
    prompt: Prompt,
    count: int,
    inputs: Callable[[dict[str, Tensor]], Mapping[str, Any]],
) -> list[int]:
    """Return the likeliest tokens behind a prompt, one after the other, in float32.

    The class is the first of ``architectures``; nothing that lies in the checkpoint is executed.

    Args:
        checkpoint: A folder in the layout that transformers reads.
        prompt: What a family's `prepare_prompt` returned.
        count: How many tokens.
        inputs: Turns the graph's inputs, of all images one behind the other along the first axis,
            into the class's further arguments. Not called where there are no images.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(checkpoint, dtype=torch.float32).eval()
    further = inputs(_graph_inputs(prompt)) if any(prompt.images.values()) else {}
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


def _graph_inputs(prompt: Prompt) -> dict[str, Tensor]:
    import numpy as np
    import torch

    (samples,) = [[*samples] for samples in prompt.images.values() if samples]
    joined: dict[str, np.ndarray[Any, Any]] = {
        name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]
    }
    return {name: torch.from_numpy(array) for name, array in joined.items()}
