"""A converted and built model answers as the model's own class does."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import axcore
import axcore_plugins_qwen25vl as plugin
from axcore import Options, Prompt, Registry
from axcore.checkpoint import fabricate
from axcore.runtime.runner import Answer, Runner
from axcore.testing import answered, logits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HEIGHT, WIDTH, CHUNK, CACHE = 84, 112, 16, 159  # 12 tokens an image
HISTORIES = (16, 32, 48, 64, 80, 96, 112)
EXACT = {"weight-type": "fp32", "hidden-state-type": "fp32"}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry([EntryPoint("qwen25vl", "axcore_plugins_qwen25vl", "axcore")])


@pytest.fixture(scope="module")
def model() -> Any:
    """The oracle: transformers' class, every parameter random and a bfloat16 number."""
    card = plugin.model_cards()[0]
    config = card.published.tiny_config
    made = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
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
    fabricate(plugin.model_cards()[0], "tiny", folder)
    tensors = {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for key, value in model.state_dict().items()
        if key != "lm_head.weight"
    }
    for shard in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        shard.unlink()
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


def image(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def message(text: str, *images: Image.Image, frames: Sequence[Image.Image] = ()) -> Any:
    parts: list[dict[str, Any]] = [{"type": "image", "image": item} for item in images]
    if frames:
        parts.append({"type": "video", "video": list(frames), "fps": 1.0})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


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
            eos_token_id=[501, 499],
        )  # fmt: skip
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new


def assert_same(made: Answer, expected: list[int]) -> None:
    """Compare tokens; the oracle keeps the one that ended the answer."""
    if made.finish_reason == "stop":
        expected = expected[:-1]
    assert made.token_ids == expected


@pytest.mark.parametrize("length", [0, 1, 5, 16, 21])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_answers_equal_the_model_class(
    runner: Runner, model: Any, length: int, images: int
) -> None:
    """The same greedy tokens in float32, for prompts of many lengths and up to two images."""
    shown = [image(seed) for seed in range(images)]
    prompt = runner.prepare([message("a" * length, *shown)])
    answer = answered(runner, prompt, max_new_tokens=12)
    assert_same(answer, generated(model, prompt, shown, [], 12))


def test_prompts_around_multiples_of_the_chunk(runner: Runner, model: Any) -> None:
    """One token less than two chunks, two chunks exactly, and one more.

    Oracle: the model class; the lengths are asserted to be those.
    """
    system = {"role": "system", "content": ""}
    frame = len(runner.prepare([system, message("")]).input_ids)
    for total in (2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1):
        prompt = runner.prepare([system, message("b" * (total - frame))])
        answer = answered(runner, prompt, max_new_tokens=6)
        assert len(prompt.input_ids) == total
        assert_same(answer, generated(model, prompt, [], [], 6))


def test_an_answer_goes_on_until_the_context_is_full(runner: Runner, model: Any) -> None:
    """Prompt and answer share C + 1 positions; the last token is still the right one.

    Oracle: the model class, which knows no such limit.
    """
    shown = [image(3)]
    for text in ("c", "de", "fgh", "ijkl"):  # until an answer does not end by itself
        prompt = runner.prepare([message(text, *shown)])
        answer = answered(runner, prompt)
        if answer.finish_reason == "context":
            break
    assert answer.finish_reason == "context"
    assert len(prompt.input_ids) + len(answer.token_ids) == CACHE + 1
    assert_same(answer, generated(model, prompt, shown, [], len(answer.token_ids)))


def test_a_video_has_positions_in_time(
    checkpoint: Path, registry: Registry, model: Any, tmp_path: Path
) -> None:
    """Four frames are two steps of the video graph, and the oracle says the same of them."""
    options = Options(task="video", height=HEIGHT, width=WIDTH, prefill_len=96, kv_cache_len=CACHE)
    axcore.convert(str(checkpoint), tmp_path, options=options, verify=False, registry=registry)
    axcore.build(tmp_path, toolchain="onnx", options=EXACT, registry=registry)
    frames = [image(seed) for seed in range(4)]
    system = {"role": "system", "content": "s"}
    runner = Runner.open(tmp_path, registry)
    prompt = runner.prepare([system, message("?", frames=frames)])
    answer = answered(runner, prompt, max_new_tokens=10)
    assert_same(answer, generated(model, prompt, [], frames, 10))


def test_a_next_turn_reads_only_what_is_new(runner: Runner, model: Any) -> None:
    """The second question keeps what the caches hold of the first, and answers the same.

    Oracle: the model class on the whole conversation; a fresh reading of it.
    """
    shown = [image(5)]
    first = message("x", *shown)
    answer = answered(runner, [first], max_new_tokens=4)
    talk = [first, {"role": "assistant", "content": answer.text}, message("y")]
    prompt = runner.prepare(talk)
    second = answered(runner, prompt, max_new_tokens=8)
    assert second.reused_tokens > 12  # the image among them
    expected = generated(model, prompt, shown, [], 8)
    assert_same(second, expected)
    answered(runner, [message("something else")], max_new_tokens=1)
    fresh = answered(runner, talk, max_new_tokens=8)
    assert fresh.token_ids == second.token_ids


def test_an_interrupted_answer_leaves_the_caches_good(runner: Runner) -> None:
    """Closed after a piece or at once, the next answer to the same prompt is as ever.

    Oracle: the answer of an undisturbed run.
    """
    messages = [message("zz", image(6))]
    prompt = runner.prepare(messages)
    whole = answered(runner, prompt, max_new_tokens=8)
    pieces = runner.answer(prompt, max_new_tokens=8)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    again = answered(runner, messages, max_new_tokens=8)
    assert again.token_ids == whole.token_ids
    assert again.reused_tokens == len(prompt.input_ids) - 1


def test_bfloat16_states_stay_close(
    bundle: Path, registry: Registry, runner: Runner, tmp_path: Path
) -> None:
    """First logits differ by what bfloat16 leaves; where the choice parts, float32 was torn.

    Oracle: the float32 build of the same numbers.
    """
    import shutil

    out = shutil.copytree(bundle, tmp_path / "bundle")
    axcore.build(out, toolchain="onnx", options={"hidden-state-type": "bf16"}, registry=registry)
    coarse = Runner.open(out, registry)
    prompt = runner.prepare([message("word", image(7))])
    exact, near = (logits(opened, prompt, ())[0] for opened in (runner, coarse))
    spread = exact.std()
    assert np.abs(exact - near).max() < 0.1 * spread
    best = np.argsort(exact)[-2:]
    margin = exact[best[1]] - exact[best[0]]
    if near.argmax() != exact.argmax():
        assert margin < 2 * np.abs(exact - near).max()
