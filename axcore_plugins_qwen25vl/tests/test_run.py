"""A converted and built model answers as the model's own class does."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import axcore
from axcore import Options, Prompt
from axcore.checkpoint import fabricate
from axcore.runtime.runner import Runner
from axcore.testing import answered, check_prompt, user

from .conftest import CARD, photograph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from PIL import Image

    from axcore import Registry

HEIGHT, WIDTH, CHUNK, CACHE = 84, 112, 16, 159  # 12 tokens an image
HISTORIES = (16, 32, 48, 64, 80, 96, 112)
ENDS = [501, 499]  # <|im_end|> and <|endoftext|> of a small checkpoint
SYSTEM = {"role": "system", "content": ""}
EXACT = {"exact": "float32"}


@pytest.fixture(scope="module")
def model() -> Any:
    """The oracle: transformers' class, every parameter random and a bfloat16 number."""
    config = Qwen2_5_VLConfig(**CARD.published.tiny_config)
    made = Qwen2_5_VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(11)
    for name, parameter in made.named_parameters():
        centre = 1.0 if "norm" in name or "ln_q" in name else 0.0
        spread = 2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        drawn = centre + spread * torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn.bfloat16().float()
    made.eval()  # type: ignore[no-untyped-call]
    return made


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the published layout, with the tokenizer of a fabricated one."""
    folder = tmp_path_factory.mktemp("checkpoint") / "folder"
    fabricate(CARD, "tiny", folder)
    tensors = {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for key, value in model.state_dict().items()
        if key != "lm_head.weight"
    }
    save_file({k: v.bfloat16().contiguous() for k, v in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, registry: Registry, once: Callable[..., Path]) -> Path:
    """A bundle whose layer models compute and pass states in float32."""
    options = Options(
        height=HEIGHT, width=WIDTH, prefill_len=CHUNK, kv_cache_len=CACHE,
        last_kv_cache_len=HISTORIES,
    )  # fmt: skip

    def make(out: Path) -> None:
        axcore.convert(str(checkpoint), out, options=options, verify=False, registry=registry)
        axcore.build(out, toolchain="onnx", options=EXACT, registry=registry)

    return once("qwen25vl", make)


@pytest.fixture(scope="module")
def runner(bundle: Path, registry: Registry) -> Runner:
    return Runner.open(bundle, registry)


def generated(
    model: Any, prompt: Prompt, images: Sequence[Image.Image], frames: Sequence[Image.Image],
    count: int,
) -> list[int]:  # fmt: skip
    """Ask the oracle: its own processor for pixels, its own positions, its own caches."""
    processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=10**7)
    ids = torch.from_numpy(prompt.input_ids)[None]
    config = model.config
    given: dict[str, Any] = {}
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    if images:
        made = processor(images=list(images), return_tensors="pt")
        given |= {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
    if frames:
        steps = [processor(images=[f], return_tensors="pt")["pixel_values"] for f in frames]
        # A step of two frames: the first half of a patch's values is of one, the second of other.
        rows = []
        for one, two in zip(steps[::2], steps[1::2], strict=True):
            both = torch.stack([one, two]).reshape(2, len(one), 3, 2, 196)[:, :, :, 0]
            rows.append(both.permute(1, 2, 0, 3).reshape(len(one), -1))
        grid = [[len(frames) // 2, HEIGHT // 14, WIDTH // 14]]
        given |= {
            "pixel_values_videos": torch.cat(rows),
            "video_grid_thw": torch.tensor(grid),
            "second_per_grid_ts": torch.tensor([2.0]),
        }
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, mm_token_type_ids=kinds, attention_mask=torch.ones_like(ids), **given,
            max_new_tokens=count, do_sample=False, repetition_penalty=1.0, pad_token_id=0,
            eos_token_id=ENDS,
        )  # fmt: skip
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new[:-1] if new[-1] in ENDS else new


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_answers_equal_the_model_class(
    runner: Runner, model: Any, images: int, beyond: int
) -> None:
    """Prompts of a multiple of the chunk, a token less or some more; up to two images.

    Oracle: the model class, which chooses the likeliest token in float32 too.
    """
    shown = [photograph(HEIGHT, WIDTH, seed) for seed in range(images)]
    frame = len(runner.prepare([SYSTEM, user(*shown, "")]).input_ids)
    total = (frame // CHUNK + 1) * CHUNK + beyond
    prompt = runner.prepare([SYSTEM, user(*shown, "b" * (total - frame))])
    answer = answered(runner, prompt, max_new_tokens=12)
    assert len(prompt.input_ids) == total
    assert answer.token_ids == generated(model, prompt, shown, [], 12)


def test_a_video_has_positions_in_time(
    checkpoint: Path, registry: Registry, model: Any, tmp_path: Path
) -> None:
    """Four frames are two steps of the video graph, and the oracle says the same of them."""
    lengths: dict[str, Any] = {
        "prefill_len": 96, "kv_cache_len": CACHE, "last_kv_cache_len": ()
    }  # fmt: skip
    options = Options(task="video", height=HEIGHT, width=WIDTH, **lengths)
    axcore.convert(str(checkpoint), tmp_path, options=options, verify=False, registry=registry)
    axcore.build(tmp_path, toolchain="onnx", options=EXACT, registry=registry)
    frames = [photograph(HEIGHT, WIDTH, seed) for seed in range(4)]
    video = {"type": "video", "video": frames, "fps": 1.0}
    content = [video, {"type": "text", "text": "?"}]
    runner = Runner.open(tmp_path, registry)
    prompt = runner.prepare([SYSTEM, {"role": "user", "content": content}])
    answer = answered(runner, prompt, max_new_tokens=10)
    assert answer.token_ids == generated(model, prompt, [], frames, 10)


def test_a_prompt_needs_nothing_that_a_board_lacks(bundle: Path, registry: Registry) -> None:
    """Nor does what is said become more than text. Oracle: the modules and the ids."""
    check_prompt(bundle, registry)


CARELESS = {
    "what a user types becomes control tokens: .*<|im_end|>": """
@hookimpl
def prepare_prompt(job, messages):
    (message,) = messages
    image, text = message["content"]
    content = [image, {**text, "text": Control(text["text"])}]
    return prompt.prepare(job, [{**message, "content": content}])
""",
    "a role becomes control tokens: .*<|im_end|>": """
checked = prompt.message_parts
prompt.message_parts = lambda message, types: checked(message, types, [message["role"]])


@hookimpl
def prepare_prompt(job, messages):
    return prompt.prepare(job, messages)
""",
    "import of pydantic halted": """
@hookimpl
def prepare_prompt(job, messages):
    import pydantic

    return prompt.prepare(job, messages)
""",
}


@pytest.mark.parametrize("fault", CARELESS)
def test_a_careless_family_is_found(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The check for authors of families. Oracle: the fault written, with its name."""
    head = "from axcore import Control, hookimpl\nfrom axcore_plugins_qwen25vl import *\n"
    head += "from axcore_plugins_qwen25vl import model_cards, export_vision, prompt\n"
    (tmp_path / "careless_family.py").write_text(head + CARELESS[fault])
    monkeypatch.syspath_prepend(tmp_path)
    registry = axcore.Registry([EntryPoint("qwen25vl", "careless_family", "axcore")])
    with pytest.raises(AssertionError, match=re.escape(fault).replace(r"\.\*", ".*")):
        check_prompt(bundle, registry)


def test_a_next_turn_reads_only_what_is_new(runner: Runner, model: Any) -> None:
    """The second question keeps what the caches hold of the first, and answers the same.

    Oracle: the model class on the whole conversation.
    """
    shown = [photograph(HEIGHT, WIDTH, 5)]
    first = user(*shown, "x")
    answer = answered(runner, [first], max_new_tokens=4)
    prompt = runner.prepare([first, {"role": "assistant", "content": answer.text}, user("y")])
    second = answered(runner, prompt, max_new_tokens=8)
    assert second.reused_tokens > 12  # the image among them
    assert second.token_ids == generated(model, prompt, shown, [], 8)
