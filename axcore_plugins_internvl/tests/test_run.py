"""A converted and built model answers as the model's own class does."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import axcore
from axcore import Options, Prompt, Registry
from axcore.checkpoint import fabricate
from axcore.runtime.runner import Runner
from axcore.testing import answered, logits, user

from .conftest import CARDS, Family, photograph, processor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from PIL.Image import Image

SIDE, CHUNK, CACHE = 84, 32, 191  # px of a tile, which is 9 tokens
HISTORIES = (32, 64, 96, 128)
EXACT = {"exact": "float32"}
ENDS = [480, 482]  # <|endoftext|> and <|im_end|> of a small checkpoint
GROUP = 32  # columns that share a scale
# Every layout and kind of language model, and one and several tiles.
CASES = (
    ("internvl3.5-1b", "native", "1"),
    ("internvl3.5-1b", "remote", "3"),
    ("internvl3-1b", "remote", "1"),
)


@dataclass(frozen=True)
class Case:
    """A bundle built in float32, and its oracle."""

    model: Any
    folder: Path
    runner: Runner
    tiles: int


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(
    request: pytest.FixtureRequest,
    families: dict[str, Family],
    registry: Registry,
    once: Callable[..., Path],
) -> Case:
    name, layout, tiles = request.param
    family, key = families[name], f"internvl-{'-'.join(request.param)}"
    source = family.folders[layout]
    checkpoint = once(f"{key}-checkpoint", lambda out: with_tokenizer(name, source, out))
    folder = once(key, lambda out: built(checkpoint, out, registry, tiles))
    return Case(family.model, folder, Runner.open(folder, registry), int(tiles))


def with_tokenizer(name: str, source: Path, out: Path) -> Path:
    """Copy a checkpoint and give it the tokenizer of a fabricated one."""
    fabricated = fabricate(CARDS[name], "tiny", out.with_name(f"{out.name}-fabricated"))
    shutil.copytree(source, out)
    shutil.copy(fabricated / "tokenizer.json", out)
    return out


def built(checkpoint: Path, out: Path, registry: Registry, tiles: str = "1") -> Path:
    """Return a bundle whose layer models compute and pass states in float32."""
    options = Options(
        height=SIDE, width=SIDE, prefill_len=CHUNK, kv_cache_len=CACHE,
        last_kv_cache_len=HISTORIES, choices={"tiles": tiles},
    )  # fmt: skip
    axcore.convert(str(checkpoint), out, options=options, verify=False, registry=registry)
    axcore.build(out, toolchain="onnx", options=EXACT, registry=registry)
    return out


def asked(text: str, *images: Image) -> list[dict[str, Any]]:
    """An empty message of the system, which else would be long, and one of a user."""
    return [{"role": "system", "content": ""}, user(*images, text)]


def pixels(images: Sequence[Image], tiles: int) -> dict[str, torch.Tensor]:
    """Return what the oracle is given of images: the tiles of its own processor."""
    if not images:
        return {}
    made = processor(SIDE, tiles)(list(images), return_tensors="pt")
    return {"pixel_values": made["pixel_values"]}


def generated(
    model: Any, prompt: Prompt, images: Sequence[Image], tiles: int, count: int
) -> list[int]:
    """Ask the oracle: its own processor for pixels, its own positions, its own caches."""
    ids = torch.from_numpy(prompt.input_ids)[None]
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **pixels(images, tiles),
            max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=ENDS,
        )  # fmt: skip
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new[:-1] if new[-1] in ENDS else new


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_answers_equal_the_model_class(case: Case, images: int, beyond: int) -> None:
    """Prompts of a multiple of the chunk, a token less or some more; up to three images.

    Oracle: the model class; text alone is around one chunk, images take several.
    """
    shown = [photograph(60, 70, seed) for seed in range(images)]
    frame = len(case.runner.prepare(asked("", *shown)).input_ids)
    total = (frame // CHUNK + 1) * CHUNK + beyond
    assert images or total == CHUNK + beyond
    prompt = case.runner.prepare(asked("b" * (total - frame), *shown))
    answer = answered(case.runner, prompt, max_new_tokens=12)
    assert len(prompt.input_ids) == total
    assert answer.token_ids == generated(case.model, prompt, shown, case.tiles, 12)


def test_a_wide_image_beside_a_square_one(case: Case, registry: Registry) -> None:
    """With three tiles, the wide one is two of them and the whole, and batches are shared.

    Oracle: the model class and its image processor, which cuts; rows of the filled batch that
    belong to no tile must not be read. Logits behind the prompt and each token are compared too.
    """
    shown = [photograph(60, 130, 1), photograph(70, 70, 2)]
    prompt = case.runner.prepare(asked("what?", *shown))
    answer = answered(case.runner, prompt, max_new_tokens=12)
    assert len(prompt.places["vision"]) == 9 * (2 if case.tiles == 1 else 4)
    assert answer.token_ids == generated(case.model, prompt, shown, case.tiles, 12)
    made = logits(Runner.open(case.folder, registry), prompt, answer.token_ids)
    ids = torch.tensor([[*prompt.input_ids, *answer.token_ids]])
    with torch.no_grad():
        expected = case.model(input_ids=ids, **pixels(shown, case.tiles)).logits[0].numpy()
    np.testing.assert_allclose(made, expected[len(prompt.input_ids) - 1 :], atol=1e-5)


def test_a_language_model_quantised_by_gptq_answers(
    families: dict[str, Family], registry: Registry, tmp_path: Path
) -> None:
    """Projections packed in 4 bits, columns in groups out of order, build and run.

    Oracle: the model class with the formula of the format, ``(level - (zero + 1)) * scale``, in
    place of each weight.
    """
    name, rng = "internvl3.5-1b", np.random.default_rng(0)
    folder = with_tokenizer(name, families[name].folders["remote"], tmp_path / "checkpoint")
    model, stored = deepcopy(families[name].model), load_file(folder / "model.safetensors")
    for key in [key for key in stored if ".layers." in key and key.endswith("_proj.weight")]:
        packed, weight = quantised(rng, *stored.pop(key).shape)
        stored |= {key.replace("weight", part): tensor for part, tensor in packed.items()}
        native = key.replace("language_model.model.", "model.language_model.")
        model.get_parameter(native).data = weight
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    said = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))

    runner = Runner.open(built(folder, tmp_path / "bundle", registry), registry)
    shown = [photograph(60, 70)]
    prompt = runner.prepare(asked("what?", *shown))
    made = answered(runner, prompt, max_new_tokens=12).token_ids
    assert made
    assert made == generated(model, prompt, shown, 1, 12)


def quantised(
    rng: np.random.Generator, rows: int, columns: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Draw a projection: its four packed tensors, and the weight float32 that they stand for."""
    count = columns // GROUP
    levels, zeros = rng.integers(0, 16, (columns, rows)), rng.integers(5, 10, (count, rows))
    scales = rng.uniform(0.02, 0.04, (count, rows)).astype(np.float16)
    group = rng.permutation(np.arange(columns, dtype=np.int32) // GROUP)
    packed = {
        "qweight": words(levels),
        "qzeros": words(zeros.T).T,
        "scales": scales,
        "g_idx": group,
    }
    weight = ((levels - (zeros[group] + 1)) * scales[group]).astype(np.float16)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in packed.items()}
    return tensors, torch.from_numpy(weight.T.astype(np.float32))


def words(fields: Any) -> Any:
    """Join each eight rows of 4 bits, the first in the lowest: int32 ``[rows / 8, columns]``."""
    joined = sum(fields[index::8] << 4 * index for index in range(8))
    return joined.astype(np.uint32).view(np.int32)
