"""Fabricated checkpoints have the real layout, and the same bytes every time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from tokenizers import Tokenizer, pre_tokenizers

from axcore.checkpoint import Checkpoint, check_layout, fabricate
from axcore.component import Shape
from axcore.errors import BudgetError, CheckpointError, ContractError
from axcore.model_card import Layout, ModelCard, Published

from ..bundles import Interrupted


def toy_tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """A made-up layout: an embedding, then a norm and a projection per layer."""
    width = config["text_config"]["width"]
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (50, width)}
    for layer in range(config["layers"]):
        shapes[f"visual.{layer}.norm.weight"] = (width,)
        shapes[f"visual.{layer}.proj.weight"] = (width, width)
        shapes[f"visual.{layer}.proj.bias"] = (width,)
    return shapes


CARD = ModelCard(
    id="toy",
    repo="nobody/Toy",
    architectures=("Toy",),
    profiles={},
    layout=Layout(toy_tensors, {"visual.": ("model.visual.", "visual."), "model.": ("model.",)}),
    published=Published(
        {"architectures": ["Toy"], "layers": 4, "text_config": {"width": 64, "kept": 1}},
        {"preprocessor_config.json": {"size": 448}},
        {"layers": 1, "text_config": {"width": 8}},
    ),
)


SPECIAL = {"<|start|>": 3, "<|end|>": 700, "<|pad|>": 699}


def changed(card: ModelCard, **published: Any) -> ModelCard:
    """Return `card` with other published files."""
    return replace(card, published=replace(card.published, **published))


TALKING = changed(
    CARD,
    config={**CARD.published.config, "text_config": {"width": 64, "vocab_size": 701}},
    tokens=lambda config: SPECIAL,
)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(path: Path) -> tuple[int, int]:
    """What changes when a file is written again or replaced; reading it changes neither."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def test_the_layout_is_the_cards(tmp_path: Path) -> None:
    """Config, side files and every tensor, spelt by the first prefix; oracle: the card."""
    folder = fabricate(CARD, "tiny", tmp_path / "toy")
    expected_config = {
        "architectures": ["Toy"],
        "layers": 1,
        "text_config": {"width": 8, "kept": 1},
    }
    assert json.loads((folder / "config.json").read_text()) == expected_config
    assert json.loads((folder / "preprocessor_config.json").read_text()) == {"size": 448}
    checkpoint = Checkpoint.open(folder, CARD.layout.prefixes)
    check_layout(checkpoint, toy_tensors(expected_config))
    assert checkpoint.info("visual.0.proj.bias").disk_key == "model.visual.0.proj.bias"
    assert {info.dtype for info in checkpoint.tensors.values()} == {"bfloat16"}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    """Oracle: safetensors' own loader, which also checks the header."""
    folder = fabricate(CARD, "full", tmp_path / "toy")
    theirs = load_file(folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        assert set(theirs) == set(checkpoint.tensors)
        assert {info.offset % 2 for info in checkpoint.tensors.values()} == {0}
        assert min(info.offset for info in checkpoint.tensors.values()) % 8 == 0
        for key, value in theirs.items():
            assert np.array_equal(checkpoint.array(key), value)
    assert load_torch_file(folder / "model.safetensors").keys() == theirs.keys()


def test_values_are_those_of_a_fresh_model(tmp_path: Path) -> None:
    """Matrices spread by 0.02, norms near 1, biases near 0; oracle: the statistics."""
    with Checkpoint.open(
        fabricate(CARD, "full", tmp_path / "toy"), CARD.layout.prefixes
    ) as checkpoint:
        read = {key: checkpoint.array(key).astype(np.float32) for key in checkpoint.tensors}
    assert read["model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert read["model.embed_tokens.weight"].mean() == pytest.approx(0, abs=0.002)
    assert read["visual.0.norm.weight"] == pytest.approx(np.ones(64), abs=0.1)
    assert read["visual.0.proj.bias"] == pytest.approx(np.zeros(64), abs=0.1)
    rows = np.concatenate([value for value in read.values() if value.ndim == 2])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_shards_hold_at_most_what_was_asked(tmp_path: Path) -> None:
    """Split by bytes with an index that the reader accepts, same values; oracle: one file."""
    whole = fabricate(CARD, "full", tmp_path / "whole")
    parts = fabricate(CARD, "full", tmp_path / "parts", shard_bytes=10_000)
    names = sorted(path.name for path in parts.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert len(names) > 2
    with Checkpoint.open(whole) as one, Checkpoint.open(parts) as many:
        assert one.digest(one.tensors) == many.digest(many.tensors)
        for name in names:
            held = [info.nbytes for info in many.tensors.values() if info.file.name == name]
            assert sum(held) <= 10_000


def test_a_tensor_depends_on_seed_key_and_shape_alone(tmp_path: Path) -> None:
    """More layers around it change nothing, another seed does; oracle: the digests."""
    deeper = changed(CARD, config={**CARD.published.config, "layers": 9})
    folders = [
        fabricate(CARD, "full", tmp_path / "a"),
        fabricate(deeper, "full", tmp_path / "b"),
        fabricate(CARD, "full", tmp_path / "c", seed=1),
    ]
    keys = list(toy_tensors(CARD.published.config))
    digests = []
    for folder in folders:
        with Checkpoint.open(folder, CARD.layout.prefixes) as checkpoint:
            digests.append([checkpoint.digest([key]) for key in keys])
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])
    assert len(set(digests[0])) == len(keys)


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """Nothing depends on hash seeds or the clock; oracle: the files of a fresh interpreter."""
    code = (
        "import sys; from pathlib import Path; from axcore.checkpoint import fabricate;"
        "from tests.checkpoint.test_fabricate import TALKING;"
        "fabricate(TALKING, 'tiny', Path(sys.argv[1]))"
    )
    command, root = [sys.executable, "-c", code, tmp_path / "there"], Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root)
    assert content(tmp_path / "there") == content(fabricate(TALKING, "tiny", tmp_path / "here"))


def test_what_is_there_is_kept_and_what_differs_replaced(tmp_path: Path) -> None:
    """The same again writes nothing; another seed, and a killed run's rest, are replaced."""
    folder = fabricate(CARD, "tiny", tmp_path / "toy")
    before = written(folder / "model.safetensors")
    fabricate(CARD, "tiny", folder)
    assert written(folder / "model.safetensors") == before
    left = tmp_path / ".axcore.99999999.partial"  # nobody holds its lock
    left.mkdir()
    (left / "rest").write_text("of a run that was killed")
    fabricate(CARD, "tiny", folder, seed=1)
    assert content(folder) == content(fabricate(CARD, "tiny", tmp_path / "fresh", seed=1))
    assert not left.exists()


# Tokenizer ---------------------------------------------------------------------------------------


def test_every_id_is_text_and_every_text_comes_back(tmp_path: Path) -> None:
    """The card's tokens at their ids, bytes, words for the rest; all ids differ in their text.

    Oracle: the tokenizers library, and its alphabet of bytes.
    """
    folder = fabricate(TALKING, "tiny", tmp_path / "toy")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 701
    assert {text: tokenizer.token_to_id(text) for text in SPECIAL} == SPECIAL
    names = [str(tokenizer.id_to_token(index)) for index in range(701)]
    letters = {name for name in names if len(name) == 1}
    assert letters == set(pre_tokenizers.ByteLevel.alphabet())
    texts = {name: tokenizer.decode([index]) for index, name in enumerate(names)}
    made_up = [texts[name] for name in names if name not in letters and name not in SPECIAL]
    assert len(set(made_up)) == len(made_up) == 701 - 256 - 3
    assert all(made_up)
    words = [text for text in made_up if text[0] == " " and text[1:].isalpha() and len(text) > 6]
    assert len(words) > len(made_up) / 3  # the rest are pieces of English
    text = "any text: \u00e9 \u6f22 \U0001f600\n\0<|end|>x"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text.replace("<|end|>", "")


def test_words_of_a_large_vocabulary_differ(tmp_path: Path) -> None:
    """More words than there are of three syllables. Oracle: their number."""
    config = {**TALKING.published.config, "text_config": {"width": 8, "vocab_size": 400_000}}
    folder = fabricate(changed(TALKING, config=config), "full", tmp_path / "toy")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == 400_000
    assert set(vocabulary.values()) == set(range(400_000))


def test_a_tokenizer_is_added_without_writing_weights_again(tmp_path: Path) -> None:
    """A checkpoint made before its card had tokens; then with others. Oracle: a fresh one."""
    folder = fabricate(changed(TALKING, tokens=None), "tiny", tmp_path / "toy")
    marker = json.loads((folder / "fabricated.json").read_text())
    del marker["tokens"]  # as it was written when there were none
    (folder / "fabricated.json").write_text(json.dumps(marker))
    before = written(folder / "model.safetensors")
    for card in (TALKING, changed(TALKING, tokens=lambda config: {"<x>": 0})):
        fabricate(card, "tiny", folder)
        assert written(folder / "model.safetensors") == before
        assert content(folder) == content(fabricate(card, "tiny", tmp_path / "fresh"))


@pytest.mark.parametrize(
    "tokens", [{"<x>": 701}, {"<x>": 5, "<y>": 5}, {f"<{i}>": i for i in range(500)}]
)
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, tokens: dict[str, int]) -> None:
    """Beyond the vocabulary, twice the same id, no room for bytes. Oracle: 701 ids."""
    card = changed(TALKING, tokens=lambda config: tokens)
    with pytest.raises(ContractError, match="do not fit a vocabulary of 701"):
        fabricate(card, "tiny", tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


# Interruptions -----------------------------------------------------------------------------------


def test_an_interrupted_run_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Half a checkpoint never bears the name; the next run ends in the undisturbed bytes."""
    with pytest.raises(KeyboardInterrupt):
        fabricate(CARD, "tiny", tmp_path / "toy", progress=Interrupted())
    assert not (tmp_path / "toy").exists()
    folder = fabricate(CARD, "tiny", tmp_path / "toy")
    assert content(folder) == content(fabricate(CARD, "tiny", tmp_path / "other"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Somebody's files are never replaced; the error names the folder."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something else"):
        fabricate(CARD, "tiny", tmp_path)
    assert content(tmp_path) == {"mine.txt": b"mine"}


def test_a_card_without_tensors_is_refused(tmp_path: Path) -> None:
    """Nothing can be made up from nothing."""
    with pytest.raises(ContractError, match="`toy` does not list its tensors"):
        fabricate(replace(CARD, layout=Layout()), "tiny", tmp_path / "toy")


def test_more_than_the_disk_holds_is_refused_before_writing(tmp_path: Path) -> None:
    """An exabyte: refused with both figures, nothing written."""
    huge = replace(CARD, layout=Layout(lambda config: {"x": (1 << 30, 1 << 30)}))
    with pytest.raises(BudgetError, match="GB free"):
        fabricate(huge, "full", tmp_path / "toy")
    assert not list(tmp_path.glob("*toy*/*"))
