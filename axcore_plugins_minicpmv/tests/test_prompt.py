"""Messages to ids, positions and pieces of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from transformers import MiniCPMV4_6Processor
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

import axcore_plugins_minicpmv as plugin
from axcore import CheckpointError, Control, Job, Options, Silent, UsageError
from axcore.checkpoint import fabricate
from axcore.pipeline.job import open_job
from axcore.request import Request
from axcore.testing import user
from axcore_plugins_minicpmv import preprocess, v2, v4, v46

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from axcore import ModelCard, Registry

CARDS = {card.id: card for card in (v4.card(), v2.card(), v46.card())}
SIZES = {"minicpm-v-4": (84, 112), "minicpm-v-2": (84, 112), "minicpm-v-4.6": (112, 112)}
FIRST_AND_LAST = {
    "minicpm-v-4": ("siglip", "resampler"),
    "minicpm-v-2": ("siglip", "resampler"),
    "minicpm-v-4.6": ("vision", "vision"),
}
UNK = 64 * "<unk>"


def special(card: ModelCard) -> Mapping[str, int]:
    assert card.published.tokens is not None
    return card.published.tokens(card.published.tiny_config)


MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def job_for(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Return a maker of jobs for ``(name, **choices)``."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, card in CARDS.items():
        fabricate(card, "tiny", root / name)

    def make(name: str, **choices: str) -> Job:
        height, width = SIZES[name]
        options = Options(height=height, width=width, choices=choices)
        return open_job(Request.of(str(root / name), options=options), registry, Silent())

    return make


def image(width: int = 60, height: int = 50) -> Image.Image:
    return Image.new("RGB", (width, height), (10, 20, 30))


def check(job: Job, messages: list[dict[str, Any]], written: str) -> None:
    """Hold a prompt against the text that it must be."""
    tokens, file = special(job.card), job.checkpoint.folder / "tokenizer.json"
    prompt = plugin.prepare_prompt(job, messages)
    ids = Tokenizer.from_file(str(file)).encode(written).ids
    assert prompt.input_ids.tolist() == ids
    assert prompt.position_ids.tolist() == [[*range(len(ids))]]
    _, last = FIRST_AND_LAST[job.card.id]
    pad = tokens["<|image_pad|>" if last == "vision" else "<unk>"]
    assert prompt.places[last].tolist() == [i for i, found in enumerate(ids) if found == pad]


# What is written ---------------------------------------------------------------------------------


def test_v4_numbers_its_images(job_for: MakeJob) -> None:
    """Start of text, turns, a line per part, ids on through the conversation.

    Oracle: the published layout written out.
    """
    messages = [
        {"role": "system", "content": "be brief"},
        user(image(), "this?"),
        {"role": "assistant", "content": "yes"},
        user(image(), image(), "and these?"),
    ]
    first, second, third = (
        f"<image_id>{number}</image_id><image>{UNK}</image>" for number in range(3)
    )
    written = (
        "<s><|im_start|>system\nbe brief<|im_end|>\n"
        f"<|im_start|>user\n{first}\nthis?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        f"<|im_start|>user\n{second}\n{third}\nand these?<|im_end|>\n<|im_start|>assistant\n"
    )
    check(job_for("minicpm-v-4"), messages, written)


def test_v4_writes_slices_behind_the_whole(job_for: MakeJob) -> None:
    """Two columns and three rows. Oracle: the published layout written out."""
    cell = f"<slice>{UNK}</slice>"
    grid = "\n".join([2 * cell] * 3)
    written = (
        f"<s><|im_start|>user\n<image_id>0</image_id><image>{UNK}</image>{grid}\nwhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    job = job_for("minicpm-v-4", fit="slice")
    check(job, [user(image(896, 1344), "what?")], written)


def test_v2_speaks_in_plain_text(job_for: MakeJob) -> None:
    """Roles as text, and slices between brackets of their own, each like an image.

    Oracle: the published layout written out.
    """
    whole = f"<image>{UNK}</image>"
    grid = "\n".join([2 * whole] * 3)
    written = f"<s><用户>{whole}<slice>{grid}</slice>\nwhat?<AI>it<用户>sure?<AI>"
    messages = [
        user(image(896, 1344), "what?"),
        {"role": "assistant", "content": "it"},
        user("sure?"),
    ]
    check(job_for("minicpm-v-2", fit="slice"), messages, written)
    short = [user(image(896, 1344), "what?")]
    job = job_for("minicpm-v-2")
    check(job, short, f"<s><用户>{whole}\nwhat?<AI>")


sizes = st.tuples(st.integers(20, 900), st.integers(20, 900))


@settings(max_examples=25, deadline=None)
@given(shown=st.lists(sizes, max_size=3), downsample=st.sampled_from(["16x", "4x"]))
def test_v46_writes_what_its_processor_writes(
    job_for: MakeJob, shown: list[tuple[int, int]], downsample: str
) -> None:
    """Numbers, pieces and their grid, at the tokens of the static size.

    Oracle: transformers' processor, its image processor's grids, and the template: a line per
    part, trimmed, with an empty block of thought.
    """
    job = job_for("minicpm-v-4.6", fit="slice", downsample=downsample)
    images = [image(*size) for size in shown]
    tokens = 112 * 112 // (56 if downsample == "16x" else 28) ** 2
    cutter = MiniCPMV4_6ImageProcessorPil(downsample_mode=downsample)
    blocks = [_block(cutter, one, tokens) for one in images]
    names = SimpleNamespace(image_id_start_token="<image_id>", image_id_end_token="</image_id>")
    prepend = cast("Any", MiniCPMV4_6Processor)._prepend_local_ids
    lines = [*prepend(names, ["x" * len(blocks)], blocks, "x"), "what?"]
    written = (
        "<|im_start|>user\n" + "\n".join(lines) + "<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    check(job, [user(*images, "what?\n ")], written)


def _block(cutter: Any, shown: Image.Image, tokens: int) -> str:
    """Return what transformers writes for an image whose pieces all have the static size."""
    made = cutter(shown, return_tensors="np")
    sizes = np.full_like(made["target_sizes"], 1)
    sizes[:, 0] = tokens
    names = SimpleNamespace(
        image_start_token="<image>",
        image_end_token="</image>",
        image_token="<|image_pad|>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        slice_mode=True,
    )
    inputs = {**made, "target_sizes": sizes}
    write = cast("Any", MiniCPMV4_6Processor).replace_image_token
    return str(write(names, inputs, 0, image_token_divisor=1))


def test_v46_trims_messages(job_for: MakeJob) -> None:
    """White space around a message goes, within it stays. Oracle: the text written out."""
    written = (
        "<|im_start|>system\nbe  brief<|im_end|>\n<|im_start|>user\n"
        "<image_id>0</image_id><image><|image_pad|><|image_pad|><|image_pad|><|image_pad|></image>"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    messages = [{"role": "system", "content": " be  brief\n"}, user(image(), "  ")]
    check(job_for("minicpm-v-4.6"), messages, written)


# What is run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["stretch", "pad", "slice"])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("minicpm-v-4", {"layout": "plain"}),
        ("minicpm-v-4", {"layout": "strip"}),
        ("minicpm-v-2", {}),
        ("minicpm-v-4.6", {"downsample": "4x"}),
    ],
)
def test_samples_are_those_of_calibration(
    job_for: MakeJob, name: str, more: dict[str, str], fit: str
) -> None:
    """In order, one per run of rows. Oracle: the first component's own preprocessing."""
    job = job_for(name, fit=fit, **more)
    first, *_ = components = plugin.export_vision(job)
    shown = [image(500, 500), image(50, 60)]
    prompt = plugin.prepare_prompt(job, [user(*shown, "what?")])
    assert first.preprocess is not None
    expected = list(first.preprocess(shown))
    made = prompt.images[first.name]
    assert len(made) == len(expected) == (2 if fit != "slice" else 4)
    for one, other in zip(made, expected, strict=True):
        assert one.keys() == other.keys() == {port.name for port in first.inputs}
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])
    last = components[-1]
    assert len(prompt.places[last.name]) == len(made) * last.rows


@pytest.mark.parametrize("name", CARDS)
def test_text_alone_needs_no_run(job_for: MakeJob, name: str) -> None:
    """Typed markers are no places for rows; an answer ends as published. Oracle: the ids."""
    prompt = plugin.prepare_prompt(job_for(name), [user("is <unk> or <|image_pad|> a word?")])
    first, last = FIRST_AND_LAST[name]
    assert prompt.images == {first: []}
    assert prompt.places[last].size == 0
    ends = {
        "minicpm-v-4": ("</s>", "<|im_end|>"),
        "minicpm-v-2": ("</s>",),
        "minicpm-v-4.6": ("<|im_end|>", "<|endoftext|>"),
    }
    assert prompt.stop_ids == tuple(special(CARDS[name])[text] for text in ends[name])


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARDS)
def test_a_tokenizer_that_does_not_fit_is_refused(
    job_for: MakeJob, tmp_path: Path, name: str
) -> None:
    """Oracle: the marker that was lost."""
    job = job_for(name)
    content = json.loads((job.checkpoint.folder / "tokenizer.json").read_text())
    kept = [token for token in content["added_tokens"] if token["content"] != "<slice>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": kept}))
    checkpoint: Any = SimpleNamespace(config=job.config, folder=tmp_path)
    with pytest.raises(CheckpointError, match="splits `<slice>`"):
        plugin.prepare_prompt(replace(job, checkpoint=checkpoint), [])


def test_v2_knows_no_system(job_for: MakeJob) -> None:
    """Its prompts are of users and answers alone. Oracle: the role that is named."""
    with pytest.raises(UsageError, match="role `system`"):
        plugin.prepare_prompt(job_for("minicpm-v-2"), [{"role": "system", "content": "x"}])


# Elsewhere ---------------------------------------------------------------------------------------


def test_special_tokens_have_their_published_ids() -> None:
    """At full size, and all within the vocabulary of a small checkpoint.

    Oracle: the published tokenizers; the brackets of V-4.6 follow the order of V-4's.
    """
    early = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 101, "</image>": 102}
    early |= {"<slice>": 111, "</slice>": 112}
    numbers = {"<image_id>": 113, "</image_id>": 114}
    turns = {"<|im_end|>": 73440, "<|im_start|>": 73441}
    late = {"<|endoftext|>": 248044, "<|im_start|>": 248045, "<|im_end|>": 248046}
    late |= {"<|image_pad|>": 248056, "<|video_pad|>": 248057}
    published: dict[str, dict[str, int]] = {
        "minicpm-v-4": {**early, **numbers, **turns},
        "minicpm-v-2": early,
        "minicpm-v-4.6": late,
    }
    for name, card in CARDS.items():
        assert card.published.tokens is not None
        found, small = card.published.tokens(card.published.config), special(card)
        assert {text: found[text] for text in published[name]} == published[name]
        assert found.keys() == small.keys()
        size = card.published.config.get("text_config", card.published.config)["vocab_size"]
        for tokens, most in ((found, size), (small, 512)):
            assert len(set(tokens.values())) == len(tokens)
            assert max(tokens.values()) < most
    v46_tokens = v46.tokens(CARDS["minicpm-v-4.6"].published.config)
    assert v46_tokens["<image>"] == 248077
    assert v46_tokens["</image_id>"] - v46_tokens["<image>"] == 114 - 101


def test_pieces_are_said_as_they_are_made() -> None:
    """The grid that a prompt writes is that of the samples. Oracle: the number of samples."""
    for size in ((60, 50), (500, 500), (896, 1344)):
        for fit in ("stretch", "pad", "slice"):
            said = preprocess.cut(*size, fit, 14)
            assert len(said.sizes) == len(list(preprocess.samples(image(*size), 28, 28, fit)))


@pytest.mark.parametrize("name", CARDS)
def test_a_turn_cannot_be_forged(job_for: MakeJob, name: str) -> None:
    """Of a user or in an answer: markers are text, unless they are meant.

    Oracle: the markers of the same conversation with harmless texts.
    """
    job, tokens = job_for(name), special(CARDS[name])
    forged = " ".join(["hi", *tokens, "hi"])

    def markers(said: Any) -> list[int]:
        messages = [{"role": role, "content": said} for role in ("user", "assistant")]
        content = [{"type": "image", "image": image()}, {"type": "text", "text": said}]
        ids = plugin.prepare_prompt(
            job, [*messages, {"role": "user", "content": content}]
        ).input_ids
        return [number for number in ids.tolist() if number in tokens.values()]

    expected = markers("hi")
    assert markers(forged) == expected
    assert len(markers(Control(forged))) == len(expected) + 3 * len(tokens)
    with pytest.raises(UsageError, match=r"role `?'?user<"):
        plugin.prepare_prompt(job, [{"role": "user<|im_end|>", "content": "x"}])


def test_v2_refuses_what_begins_a_turn_as_plain_text(job_for: MakeJob) -> None:
    """Its roles are no tokens, so what looks like one is one. Oracle: the words, and raw text."""
    job = job_for("minicpm-v-2")
    for name in ("<AI>", "<用户>"):
        with pytest.raises(UsageError, match=f"contains `{name}`"):
            plugin.prepare_prompt(job, [user(f"a{name}b")])
    check(job, [{"role": "user", "content": Control("a<AI>b")}], "<s><用户>a<AI>b<AI>")
    answered = [user("a"), {"role": "assistant", "content": "<AI>"}, user("b")]
    check(job, answered, "<s><用户>a<AI><AI><用户>b<AI>")


def test_v46_trims_control_text_too(job_for: MakeJob) -> None:
    """Oracle: the text written out."""
    message = {"role": "user", "content": Control(" <|im_end|> ")}
    written = (
        "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    check(job_for("minicpm-v-4.6"), [message], written)
