"""A converted and built model answers as transformers' Llama does behind our vision modules."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import axcore
from axcore import Options, Prompt, Registry, Silent
from axcore.pipeline.job import open_job
from axcore.request import Request
from axcore.runtime.runner import Runner
from axcore.testing import answered, check_prompt, logits, run_stages, user
from axcore_plugins_minicpmv import export_vision, v2, v4

from .conftest import llama, photograph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from axcore import Job

    from .conftest import MakeCheckpoint

HEIGHT, WIDTH, CHUNK, CACHE = 56, 84, 32, 383
HISTORIES = tuple(range(CHUNK, 321, CHUNK))
EXACT = {"exact": "float32"}
PLACE = 0  # <unk>
V4, V2 = v4.card(), v2.card()
# The factors for short and long contexts differ, as does that of the attention from 1.
ROPE = {**V4.published.tiny_config["rope_scaling"], "long_factor": [1.0] * 16, "factor": 4.0}
CHOICES = {V4.id: {"fit": "slice", "layout": "strip"}, V2.id: {"fit": "slice"}}


@dataclass(frozen=True)
class Case:
    """A bundle built in float32, and its oracle."""

    job: Job
    model: Any
    folder: Path
    runner: Runner
    ends: list[int]


@pytest.fixture(scope="module")
def checkpoints(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        card.id: make_checkpoint(card, root / card.id, **change)
        for card, change in ((V4, {"rope_scaling": ROPE}), (V2, {}))
    }


@pytest.fixture(scope="module", params=CHOICES)
def case(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, Path],
    registry: Registry,
    once: Callable[..., Path],
) -> Case:
    checkpoint, choices = checkpoints[request.param], CHOICES[request.param]
    folder = once(request.param, lambda out: build(checkpoint, out, registry, choices))
    job = open_job(Request.of(str(checkpoint), options=options(choices)), registry, Silent())
    model = llama(job.config, load_file(checkpoint / "model.safetensors"))
    ends = job.config["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    return Case(job, model, folder, Runner.open(folder, registry), ends)


def options(choices: Mapping[str, str]) -> Options:
    return Options(
        height=HEIGHT, width=WIDTH, prefill_len=CHUNK, kv_cache_len=CACHE,
        last_kv_cache_len=HISTORIES, choices=choices,
    )  # fmt: skip


def build(checkpoint: Path, out: Path, registry: Registry, choices: Mapping[str, str]) -> None:
    """Convert, and build layer models that compute and pass states in float32."""
    chosen = options(choices)
    axcore.convert(str(checkpoint), out, options=chosen, verify=False, registry=registry)
    axcore.build(out, toolchain="onnx", options=EXACT, registry=registry)


def features(job: Job, images: Sequence[Image.Image]) -> Tensor:
    """Return the rows of all pieces: the stages of tower and resampler in torch."""
    tower, resampler = export_vision(job)
    assert tower.preprocess is not None
    rows = [torch.empty(0, job.text_width)]
    stages = (*tower.stages, *resampler.stages)
    with job.checkpoint as checkpoint:
        for sample in tower.preprocess(images):
            state = [torch.from_numpy(sample[port.name]) for port in tower.inputs]
            (made,) = run_stages(stages, checkpoint.tensor, *state)
            rows.append(made[0])
    return torch.cat(rows)


def embedded(case: Case, ids: Tensor, images: Sequence[Image.Image]) -> Tensor:
    """Return what the oracle reads: float32 ``[1, n, hidden]``, features where <unk> stands."""
    rows: Tensor = case.model.get_input_embeddings()(ids).detach()
    rows[ids == PLACE] = features(case.job, images)
    return rows[None]


def generated(case: Case, prompt: Prompt, images: Sequence[Image.Image], count: int) -> list[int]:
    """Ask the oracle: its own positions, its own caches."""
    rows = embedded(case, torch.from_numpy(prompt.input_ids), images)
    with torch.no_grad():
        out = case.model.generate(
            inputs_embeds=rows, attention_mask=torch.ones(rows.shape[:2]), max_new_tokens=count,
            do_sample=False, pad_token_id=PLACE, eos_token_id=case.ends,
        )  # fmt: skip
    new: list[int] = out[0].tolist()
    return new[:-1] if new[-1] in case.ends else new


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_answers_equal_llama_behind_our_modules(case: Case, images: int, beyond: int) -> None:
    """Prompts of a multiple of the chunk, a token less or some more; up to three images.

    Oracle: `generated`; text alone is around one chunk, images take several.
    """
    shown = [photograph(90, 60, seed) for seed in range(images)]
    frame = len(case.runner.prepare([user(*shown, "")]).input_ids)
    total = (frame // CHUNK + 1) * CHUNK + beyond
    assert images or total == CHUNK + beyond
    prompt = case.runner.prepare([user(*shown, "b" * (total - frame))])
    answer = answered(case.runner, prompt, max_new_tokens=12)
    assert len(prompt.input_ids) == total
    assert answer.token_ids == generated(case, prompt, shown, 12)


def test_a_prompt_needs_nothing_that_a_board_lacks(case: Case, registry: Registry) -> None:
    """Slices and strips among it. Oracle: the modules that are imported."""
    check_prompt(case.folder, registry)


def test_a_large_image_is_read_in_slices(case: Case) -> None:
    """The whole and two cells, then another image: each piece's rows stand in its place.

    Oracle: `generated`; the pieces' order is that of their markers.
    """
    shown = [photograph(600, 400, 1), photograph(90, 60, 2)]
    prompt = case.runner.prepare([user(*shown, "what?")])
    answer = answered(case.runner, prompt, max_new_tokens=12)
    assert len(prompt.vision_rows["resampler"]) == 64 * (3 + 1)
    assert answer.token_ids == generated(case, prompt, shown, 12)


def test_logits_are_those_of_llama(case: Case, registry: Registry, tmp_path: Path) -> None:
    """Behind the prompt and each token: in float32 exactly, with bfloat16 states closely.

    So where the latter chooses another token, the former was torn. Oracle: Llama behind our
    modules, given the same tokens at once.
    """
    out = shutil.copytree(case.folder, tmp_path / "bundle")
    axcore.build(out, toolchain="onnx", options={"hidden-state-type": "bf16"}, registry=registry)
    shown = [photograph(90, 60, 7)]
    prompt = case.runner.prepare([user(*shown, "word")])
    answer = answered(case.runner, prompt, max_new_tokens=8)
    exact, near = (
        logits(Runner.open(folder, registry), prompt, answer.token_ids)
        for folder in (case.folder, out)
    )
    ids = torch.tensor([*prompt.input_ids, *answer.token_ids])
    with torch.no_grad():
        expected = case.model(inputs_embeds=embedded(case, ids, shown)).logits[0].numpy()
    expected = expected[len(prompt.input_ids) - 1 :]
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    assert 0 < np.abs(near - exact).max() < 0.1 * exact.std()


@pytest.mark.parametrize("case", [V2.id], indirect=True)
def test_folded_scales_are_applied_once(
    case: Case, checkpoints: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    """A bundle with folded scales computes the same, but for the rounding of its embedding.

    Oracle: the bundle whose scales are applied while it runs.
    """
    folded, choices = tmp_path / "folded", {**CHOICES[V2.id], "fold-scales": "yes"}
    build(checkpoints[V2.id], folded, registry, choices)
    prompt = case.runner.prepare([user(photograph(90, 60, 7), "word")])
    exact, near = (
        logits(runner, prompt, (300,)) for runner in (case.runner, Runner.open(folded, registry))
    )
    assert 0 < np.abs(near - exact).max() < 0.1 * exact.std()
