"""The CLIP judge. The oracle is open_clip's arithmetic (`toy`)."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from axcore import AxcoreError, CheckpointError, UsageError
from axcore.calibration import embedded_images
from axcore.errors import ImageError
from axcore.evaluate import Clip, clip_scores, images_by_name
from axcore.evaluate.clip_files import ClipFiles, read_clip
from axcore.evaluate.clip_model import _model
from axcore.testing import Recorder

from . import toy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Array = np.ndarray[Any, Any]

BIN, SAFE = "open_clip_pytorch_model.bin", "open_clip_model.safetensors"
TEXTS = ["the cat", "", "A dog's 2 cats, the dog!", "cat " * 40, "THE   DOG\n"]
SIDE = toy.PLAIN.grid * toy.PATCH
ATOL = 1e-5  # of unit vectors; the wide tower adds 1088 products in another order


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the document's judge needs it: one file of weights, and the vocabulary."""
    return toy.write(tmp_path)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip.load(toy.write(tmp_path_factory.mktemp("clip")))


def pixels_of(count: int, side: int = SIDE) -> Array:
    return np.random.default_rng(0).standard_normal((count, 3, side, side), np.float32)


def describe(folder: Path, **model: Any) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))


# Arithmetic --------------------------------------------------------------------------------------


def write_bin(folder: Path, state: toy.State) -> Path:
    torch.save(state, folder / BIN)
    return folder / BIN


def write_safetensors(folder: Path, state: toy.State) -> Path:
    save_file(state, folder / SAFE)
    return folder


def write_half(folder: Path, state: toy.State) -> Path:
    """Half the precision on disk, for weights that lose nothing by it."""
    save_file({name: value.half() for name, value in state.items()}, folder / SAFE)
    return folder / SAFE


def write_transformers(folder: Path, state: toy.State, end: int = toy.END) -> Path:
    """As `save_pretrained` writes it."""
    torch.save(state, folder / BIN)
    files = read_clip(folder / BIN)
    text = {**files.config["text_config"], "eos_token_id": end}
    model = CLIPModel(CLIPConfig.from_dict({**files.config, "text_config": text}))
    model.load_state_dict(dict(files.tensors))
    model.save_pretrained(folder)
    (folder / BIN).unlink()
    return folder


def write_older_transformers(folder: Path, state: toy.State) -> Path:
    """With the 2 that older configurations give as the end token."""
    return write_transformers(folder, state, end=2)


def write_sharded(folder: Path, state: toy.State) -> Path:
    write_transformers(folder, state)
    CLIPModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    "write",
    [write_bin, write_safetensors, write_half, write_transformers, write_older_transformers,
     write_sharded],
)  # fmt: skip
def test_features_are_those_of_open_clip(
    tmp_path: Path, write: Callable[[Path, toy.State], Path]
) -> None:
    """Whatever layout the weights come in, for images and for texts up to far beyond the
    context. Oracle: open_clip's arithmetic and its byte pair encoding, written out.
    """
    state = {name: value.half().float() for name, value in toy.weights().items()}
    toy.write_merges(tmp_path)
    clip = Clip.load(write(tmp_path, state))
    pixels = pixels_of(3)
    images = toy.image_features(state, torch.from_numpy(pixels))
    np.testing.assert_allclose(clip.image_features(pixels), images, atol=ATOL)
    texts = toy.text_features(state, toy.ids(TEXTS))
    np.testing.assert_allclose(clip.text_features(TEXTS), texts, atol=ATOL)


@pytest.mark.parametrize(
    ("shape", "described"),
    [
        (toy.Shape(width=1088, heads=16), {}),
        (toy.Shape(act="quick"), {"quick_gelu": True}),
        (toy.Shape(heads=4, text_heads=2), {"vision_cfg": {"head_width": 32},
                                            "text_cfg": {"heads": 2}}),
    ],
    ids=["wide tower", "quick gelu", "described heads"],
)  # fmt: skip
def test_what_shapes_leave_open(folder: Path, shape: toy.Shape, described: dict[str, Any]) -> None:
    """Heads follow the width as in open_clip's own models; its description goes before.
    Oracle: open_clip's arithmetic with those heads and that activation.
    """
    state = toy.weights(shape)
    torch.save(state, folder / BIN)
    if described:
        describe(folder, **described)
    clip, pixels = Clip.load(folder), pixels_of(2)
    expected = toy.image_features(state, torch.from_numpy(pixels), shape)
    np.testing.assert_allclose(clip.image_features(pixels), expected, atol=ATOL)
    expected = toy.text_features(state, toy.ids(TEXTS), shape)
    np.testing.assert_allclose(clip.text_features(TEXTS), expected, atol=ATOL)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_any_text(judge: Clip, text: str) -> None:
    """Printable ASCII, the context exceeded or not. Oracle: open_clip's arithmetic."""
    expected = toy.text_features(toy.weights(), toy.ids([text, "the dog"]))
    np.testing.assert_allclose(judge.text_features([text, "the dog"]), expected, atol=ATOL)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64))
@example(640, 427, 224)  # 55.5 pixels are left on either side: 56, where rounding down gives 55
@example(427, 640, 224)
def test_pixels_are_those_of_open_clip(width: int, height: int, side: int) -> None:
    """Any size and form, judged at any size; the model is a stand-in that knows its size alone.
    Oracle: open_clip's transform, written out.
    """
    noise = np.random.default_rng(width * 90 + height).integers(
        0, 256, (height, width, 3), np.uint8
    )
    image = Image.fromarray(noise)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=side),
        text_config=SimpleNamespace(max_position_embeddings=toy.CONTEXT),
    )
    clip = Clip(ClipFiles(Path(), {}, {}), SimpleNamespace(config=config), None)
    np.testing.assert_allclose(clip.pixels(image), toy.pixels(image, side), atol=1e-6)


def test_mean_and_deviation_follow_the_files(folder: Path) -> None:
    """A judge trained with other pixel statistics is fed by them. Oracle: mean 0 and deviation 1
    leave the bytes over 255.
    """
    shown = {"preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
    (folder / "open_clip_config.json").write_text(json.dumps(shown))
    made = Clip.load(folder).pixels(Image.new("RGB", (50, 40), (255, 0, 51)))
    np.testing.assert_allclose(made[:, 5, 5], [1, 0, 0.2], atol=1e-6)


def test_weights_are_in_memory_once(folder: Path) -> None:
    """The model computes on the mapped file itself. Oracle: the addresses of the tensors."""
    files = read_clip(folder)
    state = _model(files).state_dict()
    assert {value.data_ptr() for value in state.values()} == {
        value.data_ptr() for value in files.tensors.values()
    }


# Scores ------------------------------------------------------------------------------------------


class Counting:
    """The judge, counting what passes through it."""

    def __init__(self, clip: Clip) -> None:
        self.pixels = clip.pixels
        self.clip, self.images, self.texts = clip, 0, list[str]()

    def image_features(self, pixels: Array) -> Array:
        self.images += len(pixels)
        return self.clip.image_features(pixels)

    def text_features(self, texts: Sequence[str]) -> Array:
        self.texts += texts
        return self.clip.text_features(texts)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images in two folders, more than a group of them."""
    photo = Image.open(io.BytesIO(embedded_images()[0].read_bytes())).resize((60, 40))
    for i in range(12):
        path = tmp_path / ("images" if i % 2 else "images/deeper") / f"{i}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        photo.rotate(7 * i).save(path)
    return tmp_path / "images"


def test_the_score_is_the_raw_mean_cosine(judge: Clip, images: Path) -> None:
    """Two sides at once, equal texts and images computed once. Oracle: the cosine of open_clip's
    features, neither scaled nor clamped.
    """
    answers = {f"{i}.png": ("the cat", "the dog " * (i % 3)) for i in range(12)}
    counting, recorder = Counting(judge), Recorder()
    found = images_by_name(images, answers)
    scores = clip_scores(counting, answers, found, recorder)  # type: ignore[arg-type]
    assert (scores.names, scores.skipped) == (tuple(answers), {})
    pixels = np.stack([judge.pixels(found[name].load()) for name in answers])
    images = toy.image_features(toy.weights(), torch.from_numpy(pixels))
    for side, made in enumerate(scores.values):
        said = toy.ids([texts[side] for texts in answers.values()])
        expected = (images * toy.text_features(toy.weights(), said)).sum(-1)
        np.testing.assert_allclose(made, expected, atol=ATOL)
        assert scores.means[side] == pytest.approx(float(expected.mean()), abs=ATOL)
    assert counting.images == 12
    assert sorted(counting.texts) == sorted({t for texts in answers.values() for t in texts})
    assert recorder.done == recorder.totals == {"judge images": 12, "judge answers": 4}


def test_an_unreadable_image_costs_no_other(judge: Clip, images: Path) -> None:
    """Empty and cut files are named and left out. Oracle: the scores without them."""
    (images / "1.png").write_bytes(b"")
    (images / "3.png").write_bytes((images / "5.png").read_bytes()[:60])
    answers = {f"{i}.png": ("the cat",) for i in range(12)}
    recorder = Recorder()
    scores = clip_scores(judge, answers, images_by_name(images, answers), recorder)
    assert sorted(scores.skipped) == ["1.png", "3.png"]
    assert [str(images / "1.png") in warning for warning in recorder.warned] == [True, False]
    good = {name: texts for name, texts in answers.items() if name not in scores.skipped}
    alone = clip_scores(judge, good, images_by_name(images, good))
    assert scores.names == alone.names
    np.testing.assert_allclose(scores.values, alone.values, atol=ATOL)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_are_judged_as_stored(judge: Clip, images: Path, orientation: int) -> None:
    """An EXIF orientation turns nothing. Oracle: open_clip's features of what `PIL.Image.open`
    gives.
    """
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = images / "turned.jpg"
    Image.open(images / "1.png").save(image, exif=exif)
    answers = {"turned.jpg": ("the cat",)}
    scores = clip_scores(judge, answers, images_by_name(images, answers))
    with Image.open(image) as image:
        features = toy.image_features(toy.weights(), toy.pixels(image, SIDE)[None])
    expected = features @ toy.text_features(toy.weights(), toy.ids(["the cat"])).T
    assert scores.means[0] == pytest.approx(float(expected), abs=ATOL)


def test_no_readable_image(judge: Clip, tmp_path: Path) -> None:
    """There is no score of nothing. Oracle: the message."""
    (tmp_path / "a.jpg").touch()
    answers = {"a.jpg": ("the cat",)}
    with pytest.raises(ImageError, match="none of 1 images can be read"):
        clip_scores(judge, answers, images_by_name(tmp_path, answers))


def test_images_that_are_not_there(images: Path) -> None:
    """Missing and ambiguous base names are refused before anything is computed. Oracle: the
    messages.
    """
    with pytest.raises(ImageError, match=r"2 of 3 images are not in .*\n  missing: x, y$"):
        images_by_name(images, ["1.png", "y", "x"])
    (images / "deeper" / "1.png").touch()
    with pytest.raises(ImageError, match=r"two images are called `1.png`"):
        images_by_name(images, ["1.png"])
    assert list(images_by_name(images, ["2.png"])) == ["2.png"]
    assert list(images_by_name(images / "3.png", ["3.png"])) == ["3.png"]


# Bad input ---------------------------------------------------------------------------------------


class Hostile:
    """Runs code where a pickle of it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (type(self.path).touch, (self.path,))


def test_no_code_of_a_file_runs(folder: Path) -> None:
    """Weights that hold an object are refused and nothing happens. Oracle: the trace that the
    object would leave.
    """
    trace = folder / "trace"
    torch.save({**toy.weights(), "extra": Hostile(trace)}, folder / BIN)
    with pytest.raises(CheckpointError, match="cannot be read as plain weights"):
        Clip.load(folder)
    assert not trace.exists()


STATES: dict[str, tuple[Callable[[toy.State], object], str]] = {
    "a tensor too few": (
        lambda state: state.pop("ln_final.weight"),
        r'another CLIP[\s\S]*Missing key.*"text_model.final_layer_norm.weight"',
    ),
    "a tensor too many": (
        lambda state: state.update({"visual.ln_0.weight": torch.ones(2)}),
        r'Unexpected key.*"visual.ln_0.weight"',
    ),
    "another width": (
        lambda state: state.update({"visual.proj": torch.zeros(toy.PLAIN.width, 2 * toy.SPACE)}),
        r"visual_projection.weight: .*\[48, 128\].*\[24, 128\]",
    ),
    "another text tower": (
        lambda state: state.pop("token_embedding.weight"),
        r"`text_model.embeddings.token_embedding.weight` has an unexpected shape\n  found: none",
    ),
    "a flat tensor": (
        lambda state: state.update({"positional_embedding": torch.ones(7)}),
        r"found: \[7\], expected 2 dimensions",
    ),
    "an odd attention": (
        lambda state: state.update({"transformer.resblocks.0.attn.in_proj_bias": torch.ones(4)}),
        r"size mismatch for text_model.encoder.layers.0.self_attn.k_proj.bias",
    ),
    "no vision transformer": (
        lambda state: state.pop("visual.conv1.weight"),
        "not the weights of a CLIP with a vision transformer",
    ),
    "no numbers": (
        lambda state: state["ln_final.bias"].fill_(torch.nan),
        "features of this CLIP are not finite",
    ),
    "something else": (
        lambda state: state.update(step=3),  # type: ignore[call-overload]
        "holds 'step', which is not a tensor but int",
    ),
}


@pytest.mark.parametrize(("change", "message"), STATES.values(), ids=STATES)
def test_other_weights(folder: Path, change: Callable[[toy.State], object], message: str) -> None:
    """Weights that are not this CLIP's are refused. Oracle: the messages."""
    state = toy.weights()
    change(state)
    torch.save(state, folder / BIN)
    with pytest.raises(CheckpointError, match=message):
        Clip.load(folder).text_features(["the cat"])


@pytest.mark.parametrize("name", [BIN, SAFE])
def test_a_file_cut_short(folder: Path, name: str) -> None:
    """A download that broke off is refused wherever it did. Oracle: the kind of error."""
    save_file(toy.weights(), folder / SAFE)
    whole = (folder / name).read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        (folder / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError, match=name):
            Clip.load(folder / name)


def test_the_configuration_of_another_clip(tmp_path: Path) -> None:
    """A folder whose parts do not belong together. Oracle: the messages."""
    toy.write_merges(tmp_path)
    write_transformers(tmp_path, toy.weights())
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"text_config": {**config["text_config"], "hidden_size": 32}}, "weights of another CLIP"),
        ({"model_type": "blip"}, "not that of a CLIP[\\s\\S]*`blip`, not `clip`"),
        ({"projection_dim": "wide"}, "not that of a CLIP"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            Clip.load(tmp_path)


def test_another_way_to_show_images(folder: Path) -> None:
    """What would be judged wrongly is refused. Oracle: the message."""
    shown = {"preprocess_cfg": {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(shown))
    with pytest.raises(CheckpointError, match="`resize_mode` 'squash'; only shortest is supported"):
        Clip.load(folder)
    for damaged in ("[]", "{"):
        (folder / "open_clip_config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"open_clip_config\.json cannot be used"):
            Clip.load(folder)


@pytest.mark.parametrize("words", [toy.WORDS - 3, toy.WORDS + 3])
def test_the_tokenizer_of_another_model(folder: Path, words: int) -> None:
    """A vocabulary of another size would score at random. Oracle: the message."""
    state = toy.weights()
    state["token_embedding.weight"] = torch.zeros(words, toy.PLAIN.text_width)
    torch.save(state, folder / BIN)
    with pytest.raises(CheckpointError, match=rf"another model: {toy.WORDS} tokens.*{toy.END}"):
        Clip.load(folder)


def test_the_vocabulary_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A Hugging Face folder serves as well as open_clip's file; without any, what is missing is
    said. Oracle: equal features; the message.
    """
    expected = Clip.load(folder).text_features(TEXTS)
    merges = (folder / "bpe_simple_vocab_16e6.txt.gz").rename(folder / "merges.gz")
    with pytest.raises(UsageError, match="no vocabulary of a CLIP") as caught:
        Clip.load(folder)
    assert "--tokenizer" in caught.value.hint
    assert "--clip-tokenizer" not in caught.value.hint
    clip = Clip.load(folder, merges)
    np.testing.assert_array_equal(clip.text_features(TEXTS), expected)
    for name in ("whole", "parts"):
        other = tmp_path_factory.mktemp(name)
        clip._tokenizer.save_pretrained(other)
        if name == "parts":
            clip._tokenizer.backend_tokenizer.model.save(str(other))
            (other / "tokenizer.json").unlink()
        np.testing.assert_array_equal(Clip.load(folder, other).text_features(TEXTS), expected)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    """They are asked for before their vocabulary. Oracle: the messages."""
    with pytest.raises(CheckpointError, match=r"no weights of a CLIP\n  there is no .*nope$"):
        Clip.load(tmp_path / "nope")
    with pytest.raises(CheckpointError, match=r"no weights of a CLIP\n  in: .*\n  looked for: "):
        Clip.load(tmp_path)


def test_damaged_vocabularies(folder: Path) -> None:
    """Each is named. Oracle: the messages."""
    merges = folder / "bpe_simple_vocab_16e6.txt.gz"
    merges.write_bytes(merges.read_bytes()[:20])
    with pytest.raises(UsageError, match="cannot be read as CLIP's merges"):
        Clip.load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"the tokenizer in .* cannot be read"):
        Clip.load(folder)


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra; the error says how to have it. Oracle: the hint."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AxcoreError, match="needs transformers") as caught:
        Clip.load(folder)
    assert "axcore[evaluate]" in caught.value.hint
