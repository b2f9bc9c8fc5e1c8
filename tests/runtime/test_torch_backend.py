"""The torch backend answers as the layer models do, for every kind of model and of request."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import axcore
from axcore import (
    CheckpointError,
    Embedding,
    Layout,
    Options,
    Port,
    Registry,
    Silent,
    UnsupportedModel,
    UsageError,
)
from axcore.checkpoint import Checkpoint, fabricate
from axcore.language.embedding import default_embedding
from axcore.pipeline.job import open_job
from axcore.request import Request
from axcore.runtime import axengine_sim, torch_backend
from axcore.runtime.deployment import Deployment
from axcore.runtime.language import LayerModels
from axcore.runtime.runner import Answer, Runner
from axcore.runtime.torch_model import TorchLanguage, place_of, with_weights
from axcore.testing import answered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from axcore.runtime.language import LanguageModel

    Array = np.ndarray[Any, Any]

EXACT = {"exact": "float32"}
SIZES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {"height": 84, "width": 112},  # positions in three rows
    "internvl3.5-1b": {"height": 56, "width": 56},  # norms of queries and keys
    "minicpm-v-4": {"height": 112, "width": 112},  # two components, longrope
    "minicpm-v-2": {"height": 112, "width": 112},  # scales, which are folded
}
SYSTEMLESS = ("minicpm-v-4", "minicpm-v-2")
CHUNK, CACHE, HISTORIES = 32, 191, (32, 64, 96, 128)


class Case:
    """A model with loud weights: as layer models in float32, and under torch."""

    def __init__(self, model: str, once: Callable[..., Path], registry: Registry) -> None:
        self.registry = registry
        options = Options(
            **SIZES[model], prefill_len=CHUNK, kv_cache_len=CACHE, last_kv_cache_len=HISTORIES
        )

        def loud(out: Path) -> None:
            fabricate(registry.find(model).card, "tiny", out)
            redraw(out / "model.safetensors")

        def built(out: Path) -> None:
            source = str(self.checkpoint)
            axcore.convert(source, out, options=options, verify=False, registry=registry)
            axcore.build(out, toolchain="onnx", options=EXACT, registry=registry)

        self.checkpoint = once(f"loud-checkpoint-{model}", loud)
        self.folder = once(f"loud-{model}", built)
        self.onnx = Runner.open(self.folder, registry)
        self.torch = Runner.open(self.folder, registry, "torch")
        self.size = options.width or 0, options.height or 0
        # Where none is given, some models take a long one of their own.
        system = {"role": "system", "content": ""}
        self.beginning = [] if model in SYSTEMLESS else [system]

    def image(self, seed: int) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize(self.size, Image.Resampling.BILINEAR)

    def talk(self, text: str, *seeds: int) -> list[Any]:
        """Return a question about images."""
        images = [{"type": "image", "image": self.image(seed)} for seed in seeds]
        content = [*images, {"type": "text", "text": text}]
        return [*self.beginning, {"role": "user", "content": content}]


def redraw(file: Path) -> None:
    """Draw matrices anew, large enough for every part of a model to change its answers."""
    generator = torch.Generator().manual_seed(3)
    tensors = load_file(file)
    for name, old in tensors.items():
        if old.ndim > 1:
            new = 2 * old[0].numel() ** -0.5 * torch.randn(old.shape, generator=generator)
            tensors[name] = new.to(old.dtype)
    save_file(tensors, file)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.fixture(scope="module", params=SIZES)
def case(request: pytest.FixtureRequest, registry: Registry, once: Callable[..., Path]) -> Case:
    return Case(request.param, once, registry)


def logits(language: LanguageModel, rows: Array, steps: Array, positions: Array) -> list[Array]:
    """Read a prompt from the beginning, then rows one by one; return what each call does."""
    language.resume(0, rows.shape[1])
    made = [language.prefill(rows, positions)]
    start = int(positions.max()) + 1
    return made + [language.decode(step, start + i) for i, step in enumerate(steps)]


def test_answers_equal_those_of_the_layer_models(case: Case) -> None:
    """The same greedy tokens in float32: text alone, an image, two, and the same again.

    Oracle: the layer models under ONNX Runtime, which were made of other code.
    """
    for talk in (case.talk("a few words"), case.talk("x" * CHUNK, 1), case.talk("x", 2, 3)):
        expected = answered(case.onnx, talk, max_new_tokens=10)
        made = answered(case.torch, talk, max_new_tokens=10)
        assert made.token_ids == expected.token_ids
        assert made.finish_reason == expected.finish_reason
        assert made.text == expected.text
        answered(case.torch, case.talk("?"), max_new_tokens=1)  # another prompt in between
        again = answered(case.torch, talk, max_new_tokens=10)
        assert again.token_ids == made.token_ids


def test_first_logits_are_close(case: Case) -> None:
    """Within what float32 leaves, over all of the vocabulary. Oracle: the layer models."""
    prompt = case.onnx.prepare(case.talk("word", 4))
    exact, made = (runner._prefill(prompt, Answer()) for runner in (case.onnx, case.torch))
    assert np.abs(exact - made).max() < 1e-4 * np.abs(exact).max()
    assert exact.std() > 0.1


def test_a_next_turn_reads_only_what_is_new(case: Case) -> None:
    """What is in the cache stays, and the answer is that of the layer models."""
    first = case.talk("x", 5)
    answer = answered(case.torch, first, max_new_tokens=4)
    talk = [*first, {"role": "assistant", "content": answer.text}, case.talk("y")[-1]]
    second = answered(case.torch, talk, max_new_tokens=8)
    assert second.reused_tokens > 12
    assert second.token_ids == answered(case.onnx, talk, max_new_tokens=8).token_ids


def test_an_answer_ends_where_the_context_does(case: Case) -> None:
    """Limits are those of the bundle. Oracle: the layer models, whose shapes set them."""
    ours, theirs = case.torch.language, case.onnx.language
    assert ours.context == theirs.context
    for text in ("c", "de", "fgh", "ijkl"):  # until an answer does not end by itself
        prompt = case.torch.prepare(case.talk(text, 9))
        answer = answered(case.torch, prompt)
        if answer.finish_reason == "context":
            break
    assert answer.finish_reason == "context"
    assert len(prompt.input_ids) + len(answer.token_ids) == CACHE + 1
    expected = answered(case.onnx, case.talk(text, 9))
    assert answer.token_ids == expected.token_ids


def test_batches_equal_single_runs(case: Case) -> None:
    """Four prompts side by side give the logits that each gives alone, step by step.

    Oracle: runs of one prompt.
    """
    language = case.torch.language
    width = case.torch.deployment.embedding.shape[1]
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((4, 11, width)).astype(np.float32)
    steps = rng.standard_normal((3, 4, width)).astype(np.float32)
    positions = case.torch.prepare(case.talk("abc")).position_ids[:, :11]
    batched = logits(language, rows, steps, positions)
    for index in range(4):
        alone = logits(language, rows[[index]], steps[:, [index]], positions)
        for one, many in zip(alone, batched, strict=True):
            np.testing.assert_allclose(one[0], many[index], rtol=1e-4, atol=1e-4)
    assert all(np.abs(a - b).max() > 1e-2 for a, b in pairwise(batched[0]))
    assert language.max_batch > 1000
    case.torch.forget()  # the cache holds what the runner does not know


def test_rows_behind_layers_and_blocks(case: Case) -> None:
    """Rows added behind layers, and tokens that see each other across what is a chunk elsewhere.

    Oracle: the layer models, whose masks and sums are written in numpy.
    """
    plain = case.onnx.deployment
    ports = tuple(Port(f"rows.{layer}", (1, 6, 8), layer=layer) for layer in (0, 1))
    graph = replace(plain.graphs[-1], outputs=(*plain.graphs[-1].outputs, *ports))
    deployment = replace(plain, graphs=(*plain.graphs[:-1], graph))
    place = place_of("cpu", "float32")
    models: list[LanguageModel] = [
        LayerModels(deployment, axengine_sim, ".onnx"),
        TorchLanguage(deployment, with_weights(deployment), place),
    ]
    rng, width, count = np.random.default_rng(8), plain.embedding.shape[1], CHUNK + 9
    blocks = np.zeros(count, np.int64)
    blocks[CHUNK - 4 : CHUNK + 3] = 1
    rows = rng.standard_normal((1, count, 3 * width)).astype(np.float32)
    rows[..., width:] *= (blocks > 0)[:, None]
    step = rows[:, 0]
    prompt = case.torch.prepare(case.talk("x" * count))
    positions = prompt.position_ids[:, :count]
    made: list[list[Array]] = []
    for model in models:
        model.resume(0, count, blocks)
        read = model.prefill(rows, positions, blocks)
        made.append([read, model.decode(step, count)])
        assert model.resume(CHUNK, count, blocks) == CHUNK - 4  # the block begins there
        model.resume(0, count)
        made[-1].append(model.prefill(rows, positions) - read)  # what blocks change
        model.resume(0, count)
        without = rows * ([1] * width + [0] * 2 * width)
        made[-1].append(model.prefill(without.astype(np.float32), positions) - read)
    for ours, theirs in zip(*made, strict=True):
        # What blocks change is little with random weights, but far above what rounding makes.
        most = np.abs(theirs).max()
        assert most > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=min(1e-3, most / 50))


def test_an_interrupted_token_leaves_the_cache_good(case: Case) -> None:
    """Stopped between two layers, so that one has seen more than the other.

    Oracle: the answer of an undisturbed run.
    """
    talk = case.talk("zz", 6)
    whole = answered(case.torch, talk, max_new_tokens=8)
    runner, layers = case.torch, case.torch.language._body.layers  # type: ignore[attr-defined]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pieces = runner._tokens(runner.prepare(talk), axcore.Sampling(), 8, Answer())
    next(pieces)
    handle = layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(pieces)
    handle.remove()
    again = answered(runner, talk, max_new_tokens=8)
    assert again.reused_tokens == again.prompt_tokens - 1
    assert again.token_ids == whole.token_ids


def test_features_of_every_component_are_close(case: Case) -> None:
    """Component by component, in the order data flows. Oracle: the exported graphs."""
    (samples,) = case.torch.prepare(case.talk("?", 7)).images.values()
    ours, theirs = (r._vision._model for r in (case.torch, case.onnx))
    for sample in samples:
        made, expected = ours.features(sample), theirs.features(sample)
        assert list(made) == list(expected)
        for name, features in expected.items():
            assert made[name].shape == features.shape
            assert np.abs(made[name] - features).max() < 1e-3 * np.abs(features).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_precisions_are_chosen(case: Case, dtype: str) -> None:
    """Weights take the dtype asked for and logits stay near. Oracle: those of float32."""
    coarse = Runner.open(case.folder, case.registry, "torch", {"dtype": dtype})
    body = coarse.language._body  # type: ignore[attr-defined]
    assert {p.dtype for p in body.parameters()} == {getattr(torch, dtype)}
    prompt = coarse.prepare(case.talk("word", 8))
    near, exact = (runner._prefill(prompt, Answer()) for runner in (coarse, case.torch))
    assert near.dtype == np.float32
    assert 0 < (exact - near).std() < 0.2 * exact.std()


# What cannot be run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deployment(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A bundle that nothing was built of."""
    root = tmp_path_factory.mktemp("plain")
    checkpoint = fabricate(registry.find("internvl3.5-1b").card, "tiny", root / "checkpoint")
    options = Options(height=56, width=56)
    out = root / "bundle"
    axcore.convert(str(checkpoint), out, options=options, verify=False, registry=registry)
    return Deployment.open(out, registry)


def test_a_device_that_is_not_there() -> None:
    """The message names it, the hint one that is. Oracle: what PyTorch says of this machine."""
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no device `cuda`") as caught:
            place_of("cuda", "float32")
        assert "--device cpu" in caught.value.hint
    with pytest.raises(UsageError, match="requires torch_npu, which does not load") as caught:
        place_of("npu", "float16")
    assert "set_env.sh" in caught.value.hint


def test_a_checkpoint_that_is_gone(
    deployment: Deployment, registry: Registry, tmp_path: Path
) -> None:
    """The message names the folder in the manifest, and nothing is run."""
    bundle = shutil.copytree(deployment.folder, tmp_path / "bundle")
    text = (bundle / "axcore.json").read_text()
    folder = str(deployment.folder.parent / "checkpoint")
    (bundle / "axcore.json").write_text(text.replace(folder, "/nowhere/weights"))
    with pytest.raises(CheckpointError, match="is missing\n  folder: /nowhere/weights") as caught:
        Runner.open(bundle, registry, "torch")
    assert "other backends" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        ({"num_hidden_layers": 3}, "it lacks `model.layers.2.input_layernorm.weight` and 10 more"),
        ({"num_hidden_layers": 1}, "it holds `model.layers.1.input_layernorm.weight` and 10 more"),
        ({"architectures": ["NoSuchForCausalLM"]}, "transformers has no `NoSuchForCausalLM`"),
        ({"architectures": ["AutoModelForCausalLM"]}, "has no `AutoModelForCausalLM`"),
    ],
)
def test_a_model_that_transformers_does_not_know(
    deployment: Deployment, change: dict[str, Any], evidence: str
) -> None:
    """Tensors that the class lacks, or has too many of, and a class that is none.

    Oracle: the change made to the config, and the eleven tensors of a layer.
    """
    job = with_weights(deployment)
    config = {**job.config, "llm_config": {**job.text_config, **change}}
    job.checkpoint.config = config
    place = place_of("cpu", "float32")
    with pytest.raises((CheckpointError, UnsupportedModel), match=evidence) as caught:
        TorchLanguage(replace(deployment, job=job), job, place)
    assert caught.value.hint


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed, and how it would be. Oracle: a name that no package has."""
    found = torch_backend.TorchBackend().availability()
    assert found.available
    assert "transformers " in found.detail
    monkeypatch.setattr(torch_backend, "_NEEDED", ("torch", "no-such-package-here"))
    found = torch_backend.TorchBackend().availability()
    assert not found.available
    assert found.detail == "no-such-package-here is not installed"
    assert "pip install" in found.remedy


# A decoder that only transformers has -------------------------------------------------------------


def test_a_hybrid_decoder_is_that_of_transformers(
    deployment: Deployment, registry: Registry, tmp_path: Path
) -> None:
    """A model whose layers nothing here builds runs in its own class, made of the whole's tensors.

    Its state cannot be cut back, nor do transformers' classes read several tokens behind one: every
    prompt is read from the start.
    Oracle: the class with weights that transformers itself read.
    """
    from transformers import MiniCPMV4_6ForConditionalGeneration as Whole

    checkpoint = fabricate(registry.find("minicpm-v-4.6").card, "tiny", tmp_path / "checkpoint")
    redraw(checkpoint / "model.safetensors")
    model: Any = Whole.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.arange(20, 33)[None]
    with torch.no_grad():
        rows = model.get_input_embeddings()(ids).numpy()
        expected = [model(input_ids=ids[:, :end]).logits[0, -1].numpy() for end in (11, 12, 13)]
    job = open_job(Request.of(str(checkpoint)), registry, Silent())
    embedding = Embedding("model.language_model.embed_tokens.weight", (512, 32))
    lengths = replace(deployment, embedding=embedding)
    language = TorchLanguage(lengths, job, place_of("cpu", "float32"))
    made = logits(language, rows[:, :11], rows[0, 11:, None], np.arange(11)[None])
    np.testing.assert_allclose(np.concatenate(made), expected, rtol=1e-4, atol=1e-4)
    assert language.resume(13, 20) == 0
    again = language.prefill(rows, np.arange(13)[None])
    np.testing.assert_allclose(again[0], expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Granite", "Gemma"])
def test_rows_are_scaled_once(deployment: Deployment, tmp_path: Path, kind: str) -> None:
    """Rows come scaled, and some classes of transformers scale whatever they are given.

    Oracle: the class itself, given ids; the layers of the default decoder are held against the same
    classes elsewhere.
    """
    import transformers

    more = {"embedding_multiplier": 12.0} if kind == "Granite" else {"head_dim": 16}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64, pad_token_id=0, **more,
    )  # fmt: skip
    torch.manual_seed(2)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    layout = Layout(text_prefixes=("model.", "lm_head."))
    card = replace(deployment.job.card, layout=layout)
    job = replace(deployment.job, card=card, checkpoint=checkpoint)
    embedding = default_embedding(job)
    assert embedding.scale > 5
    language = TorchLanguage(
        replace(deployment, embedding=embedding), job, place_of("cpu", "float32")
    )
    ids = torch.arange(20, 33)[None]
    table = model.get_input_embeddings().weight[ids[0]].detach().numpy()
    rows = table[None] * np.float32(embedding.scale)
    with torch.no_grad():
        expected = [model(input_ids=ids[:, :end]).logits[0, -1].numpy() for end in (11, 12, 13)]
    made = logits(language, rows[:, :11], rows[0, 11:, None], np.arange(11)[None])
    np.testing.assert_allclose(np.concatenate(made), expected, rtol=1e-4, atol=1e-4)
