"""The tokenizer of a checkpoint, and the markers in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..foreign import reason
from .tokenizer_files import (
    ADDED,
    AGAIN,
    MERGES,
    SETTINGS,
    VOCABULARY,
    WHOLE,
    assemble_tokenizer,
    library,
    read_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tokenizers import Tokenizer


def load_tokenizer(folder: Path, markers: Mapping[str, int | None] | Iterable[str]) -> Tokenizer:
    """Return the tokenizer of a checkpoint, without truncation or padding.

    ``tokenizer.json`` is loaded directly, not through a class of transformers, because some of
    those lose markers. Without that file, a byte-level BPE is made from ``vocab.json`` and
    ``merges.txt``, with the added tokens of ``tokenizer_config.json`` or ``added_tokens.json``.
    The tokenizer is cached until a file changes.

    Args:
        folder: The checkpoint, or a folder with copies of its files.
        markers: Texts that must be an added token each; a mapping also gives the expected ids, or
            None where the config has none.

    Raises:
        CheckpointError: There is no tokenizer, it cannot be read, it could take for ever, it
            splits a marker, or it gives a marker another id.
    """
    try:
        files = _files(folder)
    except OSError as error:
        raise CheckpointError(
            f"the tokenizer cannot be read\n  {reason(error)}\n  in: {folder}",
            hint="name a folder that you may read",
        ) from error
    tokenizer = _load(*files)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    expected = markers if isinstance(markers, Mapping) else dict.fromkeys(markers)
    for marker, wanted in expected.items():
        _check_marker(tokenizer, folder, marker, wanted)
        if marker not in added:
            raise CheckpointError(
                f"`{marker}` is an ordinary word of the tokenizer, which every text may contain\n"
                f"  in: {folder}",
                hint=AGAIN,
            )
    return tokenizer


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Return the tokenizer's files, each with its modification time in ns."""
    for needed, useful in (((WHOLE,), ()), ((VOCABULARY, MERGES), (ADDED, SETTINGS))):
        # Whether it is a file that can be read is said by who reads it.
        if all((folder / name).exists() for name in needed):
            paths = [folder / name for name in (*needed, *useful)]
            return [(path, path.stat().st_mtime_ns) for path in paths if path.exists()]
    raise CheckpointError(
        f"the checkpoint has no tokenizer: {folder / WHOLE} does not exist",
        hint=f"put the published {WHOLE}, or {VOCABULARY} and {MERGES}, into the folder",
    )


@lru_cache(maxsize=4)
def _load(*files: tuple[Path, int]) -> Tokenizer:
    paths = {path.name: path for path, _ in files}
    whole = paths.get(WHOLE)
    return read_tokenizer(whole) if whole else assemble_tokenizer(paths)


def _check_marker(tokenizer: Tokenizer, folder: Path, marker: str, wanted: int | None) -> None:
    # Doubled, because an ordinary word can be a single token alone but merge with its neighbours.
    with library(f"the tokenizer cannot encode `{marker}`\n  in: {folder}"):
        ids = tokenizer.encode(marker * 2, add_special_tokens=False).ids
    found = ids[0] if ids == ids[:1] * 2 else None
    if found is None:
        raise CheckpointError(
            f"the tokenizer splits `{marker}`: twice in a row it becomes the ids {ids}\n"
            f"  in: {folder}",
            hint=f"put the published {WHOLE} into the folder; saving a tokenizer with another class"
            " than its own loses such markers",
        )
    if wanted is not None and found != wanted:
        raise CheckpointError(
            f"the tokenizer gives `{marker}` the id {found}, the config says {wanted}\n"
            f"  in: {folder}",
            hint="use config and tokenizer of one checkpoint",
        )
