"""MiniCPM-V-4.6, converted and built, answers as its own class does: its layers are hybrid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

import axcore
from axcore import Options, Prompt, Registry
from axcore.runtime.runner import Runner
from axcore.testing import answered, user
from axcore_plugins_minicpmv import v46

from .conftest import photograph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import MakeCheckpoint

HEIGHT, WIDTH, CHUNK = 56, 112, 16  # two tokens a piece
ENDS = [466, 464]  # <|im_end|> and <|endoftext|> of a small checkpoint
CARD = v46.card()


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(CARD, tmp_path_factory.mktemp("checkpoint") / "folder")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    """The oracle: transformers' class with the tensors of the checkpoint."""
    made: Any = MiniCPMV4_6ForConditionalGeneration(MiniCPMV4_6Config(**CARD.published.tiny_config))
    stored = {key: t.float() for key, t in load_file(checkpoint / "model.safetensors").items()}
    missing, unexpected = made.load_state_dict(stored, strict=False)
    assert not unexpected
    assert {*missing} <= {"lm_head.weight"}
    made.tie_weights()
    return made.eval()


@pytest.fixture(scope="module")
def runner(checkpoint: Path, registry: Registry, once: Callable[..., Path]) -> Runner:
    options = Options(
        height=HEIGHT, width=WIDTH, prefill_len=CHUNK, kv_cache_len=127,
        last_kv_cache_len=(16, 32, 48, 64, 80), choices={"fit": "slice"},
    )  # fmt: skip

    def make(out: Path) -> None:
        axcore.convert(str(checkpoint), out, options=options, verify=False, registry=registry)
        axcore.build(out, toolchain="onnx", options={"exact": "float32"}, registry=registry)

    return Runner.open(once(CARD.id, make), registry)


def generated(model: Any, prompt: Prompt, count: int) -> list[int]:
    """Ask the oracle for its features, with which it answers by its own positions and caches."""
    ids = torch.from_numpy(prompt.input_ids)
    with torch.no_grad():
        rows = model.get_input_embeddings()(ids)
        for place, sample in zip(
            prompt.places["vision"].reshape(-1, 2), prompt.images["vision"], strict=True
        ):
            size = torch.tensor([[HEIGHT // 14, WIDTH // 14]])
            pixels = torch.from_numpy(sample["pixel_values"])
            rows[place] = model.get_image_features(pixels, size).pooler_output[0]
        out = model.generate(
            inputs_embeds=rows[None], attention_mask=torch.ones(1, len(ids)), do_sample=False,
            max_new_tokens=count, pad_token_id=0, eos_token_id=ENDS,
        )  # fmt: skip
    new: list[int] = out[0].tolist()
    return new[:-1] if new[-1] in ENDS else new


@pytest.mark.parametrize(("images", "beyond"), [(0, -1), (1, 0), (2, 1)])
def test_answers_equal_the_model_class(
    runner: Runner, model: Any, images: int, beyond: int
) -> None:
    """Prompts of a multiple of the chunk, a token less or one more. Oracle: the model class."""
    shown = [photograph(90, 60, seed) for seed in range(images)]
    frame = len(runner.prepare([user(*shown, "b")]).input_ids) - 1
    total = (frame // CHUNK + 1) * CHUNK + beyond
    prompt = runner.prepare([user(*shown, "b" * (total - frame))])
    answer = answered(runner, prompt, max_new_tokens=10)
    assert len(prompt.input_ids) == total
    assert answer.token_ids == generated(model, prompt, 10)


def test_a_next_turn_begins_where_a_state_was_kept(runner: Runner, model: Any) -> None:
    """The second question reads on from a kept state, or anew, and answers the same.

    Oracle: the model class on the whole conversation.
    """
    first = user(photograph(90, 60, 5), "x")
    answer = answered(runner, [first], max_new_tokens=4)
    prompt = runner.prepare([first, {"role": "assistant", "content": answer.text}, user("y")])
    assert answered(runner, prompt, max_new_tokens=8).token_ids == generated(model, prompt, 8)
