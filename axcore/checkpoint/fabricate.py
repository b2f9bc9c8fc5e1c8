"""Fabricate checkpoints with a model's real layout and random weights, for offline trials."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BudgetError, CheckpointError, ContractError
from ..files import appearing, write_atomic
from ..model_config import config_parts
from ..progress import Progress, Silent
from .keys import disk_key
from .writer import SHARD_BYTES, Entry, total_bytes, write_json, write_shards

if TYPE_CHECKING:
    import numpy as np

    from ..component import Shape
    from ..model_card import ModelCard

MARKER = "fabricated.json"
TOKENIZER = "tokenizer.json"
FORMAT = 1  # raised when the same card, size and seed give other bytes
SPREAD = 0.02  # the initializer_range of nearly every published config
# Prime, so that rows of a matrix, cut from the pool one after the other, all differ.
POOL_VALUES = 4_194_301
MOST_MERGES = 1000  # so that prompts have about as many tokens as with a published tokenizer
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


def fabricate(
    card: ModelCard,
    size: Literal["tiny", "full"],
    folder: Path,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a checkpoint of the card's layout with seeded random bfloat16 weights.

    ``config.json`` is the published one, for "tiny" with the card's overrides; keys use the first
    spelling of each of ``card.layout.prefixes``. Matrices are normal with standard deviation 0.02,
    one-dimensional weights (norms) are near 1 and biases near 0. A tensor depends on seed,
    canonical key and shape alone. If the card has `Published.tokens`, ``tokenizer.json`` contains
    them, all bytes, pieces of English words, and made-up words for all other ids.

    The folder appears complete or not at all. It is kept if it already has the same content, and
    replaced if it is another fabricated checkpoint; if only the tokenizer differs, only that is
    written. Peak memory is about 100 MB for any size.

    Args:
        card: The model; must have `layout.tensors`.
        size: Published dimensions, or small ones that convert in seconds.
        folder: The folder to write; its parent is created.
        shard_bytes: Maximum bytes of data per file, unless a single tensor has more.

    Returns:
        `folder`.

    Raises:
        ContractError: The card does not list its tensors, or its tokens do not fit the
            vocabulary.
        CheckpointError: `folder` exists and was not fabricated.
        BudgetError: There is not enough disk space.
    """
    from filelock import FileLock

    published = card.published
    config = published.tiny_config if size == "tiny" else dict(published.config)
    entries = _entries(card, config, seed)
    settings = {"config.json": config, **published.files}
    layout = [settings, shard_bytes, [[entry.name, entry.shape] for entry in entries]]
    marker = {
        "card": card.id,
        "size": size,
        "seed": seed,
        "format": FORMAT,
        "layout_sha256": hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest(),
        "tokens": [MOST_MERGES, dict(published.tokens(config))] if published.tokens else None,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        held = _held(folder)
        if {**held, "tokens": marker["tokens"]} != marker:
            label = f"fabricate {card.id}"
            with appearing(folder) as partial:
                _check_room(folder, total_bytes(entries), label)
                partial.mkdir()
                for name, content in settings.items():
                    write_json(partial / name, content)
                _write_tokenizer(partial, card, config)
                write_shards(partial, entries, progress or Silent(), label, shard_bytes)
                write_json(partial / MARKER, marker)
        elif held != marker:
            _write_tokenizer(folder, card, config)
            write_json(folder / MARKER, marker)
    return folder


# What is written ---------------------------------------------------------------------------------


def _entries(card: ModelCard, config: Mapping[str, Any], seed: int) -> list[Entry]:
    if card.layout.tensors is None:
        raise ContractError(
            f"the card of `{card.id}` does not list its tensors, so none can be fabricated",
            hint="use a real checkpoint, or give the card `layout.tensors`",
        )
    return [
        Entry(
            disk_key(key, card.layout.prefixes),
            "bfloat16",
            tuple(shape),
            functools.partial(_values, key, tuple(shape), seed),
        )
        for key, shape in card.layout.tensors(config).items()
    ]


# Where it is written -----------------------------------------------------------------------------


def _held(folder: Path) -> dict[str, Any]:
    """Return the marker of an existing folder; refuse one that was not fabricated."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    path = folder / MARKER
    if not path.is_file():
        raise CheckpointError(
            f"the folder for a fabricated checkpoint holds something else\n  folder: {folder}",
            hint="choose another folder; only what was fabricated is ever replaced",
        )
    try:
        return dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError):
        return {}


def _check_room(folder: Path, total: int, label: str) -> None:
    if total > (free := shutil.disk_usage(folder.parent).free):
        raise BudgetError(
            f"{label}: {total / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free\n"
            f"  in: {folder.parent}",
            hint="free some space, or choose a folder on another disk",
        )


# Values ------------------------------------------------------------------------------------------


def _values(key: str, shape: Shape, seed: int) -> Iterator[memoryview]:
    """Yield a tensor's bytes: one-dimensional ones are drawn, matrices are cut from the pool."""
    identity = hashlib.sha256(json.dumps([seed, key, shape]).encode()).digest()
    if len(shape) == 1:
        centre = 1.0 if key.endswith("weight") else 0.0
        yield _normal(int.from_bytes(identity[:4], "little"), shape[0], centre)
        return
    pool = _pool()
    position = 2 * (int.from_bytes(identity[:8], "little") % POOL_VALUES)
    left = 2 * math.prod(shape)
    while left:
        part = pool[position : position + left]
        yield part
        left -= len(part)
        position = 0


@functools.cache
def _pool() -> memoryview:
    return _normal(0, POOL_VALUES, 0.0)


def _normal(seed: int, count: int, centre: float) -> memoryview:
    """Return `count` normal values in bfloat16, as bytes."""
    import ml_dtypes
    import numpy as np

    # The legacy generator: its stream is frozen, those of the newer ones may change.
    values: np.ndarray[Any, Any] = np.random.RandomState(seed).standard_normal(count)
    values *= SPREAD
    values += centre
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint8).data


# Tokenizer ---------------------------------------------------------------------------------------


def _write_tokenizer(folder: Path, card: ModelCard, config: Mapping[str, Any]) -> None:
    """Write a byte-level BPE with some English: any text has ids, any id decodes to text."""
    if card.published.tokens is None:
        return
    special = dict(card.published.tokens(config))
    vocabulary, merges = _vocabulary(card, config, special)
    flags = dict.fromkeys(("add_prefix_space", "trim_offsets"), False)
    byte_level = {"type": "ByteLevel", "use_regex": True, **flags}
    content = {
        "version": "1.0",
        "added_tokens": [_special(*item) for item in sorted(special.items(), key=itemgetter(1))],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    write_atomic(folder / TOKENIZER, json.dumps(content, ensure_ascii=False))


def _special(text: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": True}


def _vocabulary(
    card: ModelCard, config: Mapping[str, Any], special: Mapping[str, int]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return every token's id, and the merges: given tokens, bytes, pieces and words."""
    size = next((part["vocab_size"] for part in config_parts(config) if "vocab_size" in part), 0)
    free = sorted(set(range(size)) - set(special.values()))
    if len(free) != size - len(special) or len(free) < len(_alphabet()):
        raise ContractError(
            f"the {len(special)} tokens of the card of `{card.id}` and 256 bytes do not fit a"
            f" vocabulary of {size}",
            hint="give distinct ids below `vocab_size`",
        )
    merges = _merges(min((len(free) - len(_alphabet())) // 2, MOST_MERGES))
    pieces = ["".join(pair) for pair in merges]
    words = itertools.filterfalse(set(pieces).__contains__, map(_word, itertools.count()))
    texts = itertools.chain(_alphabet(), pieces, words)
    return {**special, **dict(zip(texts, free, strict=False))}, merges


def _merges(count: int) -> list[tuple[str, str]]:
    """Learn merges from the text that comes with axcore, the most frequent first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    size = len(_alphabet()) + count
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=_alphabet(), show_progress=False
    )
    texts = sorted((Path(__file__).parents[1] / "data" / "calibration_text").iterdir())
    learner.train_from_iterator((path.read_text(encoding="utf-8") for path in texts), trainer)
    return [(one, two) for one, two in json.loads(learner.to_str())["model"]["merges"]]


def _alphabet() -> list[str]:
    """Return the letter that stands for each byte in the vocabulary of a byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _word(index: int) -> str:
    """Return a distinct word for each index, after a space (as a letter of `_alphabet`).

    Each syllable is a digit of the index, shifted by the syllable before it, so that consecutive
    words do not look alike.
    """
    letters, place = "\u0120", 0
    while index or len(letters) < 7:
        index, digit = divmod(index, len(SYLLABLES))
        place = (7 * place + digit + 13) % len(SYLLABLES)
        letters += SYLLABLES[place]
    return letters
