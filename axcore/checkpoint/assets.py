"""The files beside the weights that a conversion takes along: named ones, and code on request."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..foreign import open_regular, reason
from ..limits import CODE_FILES, CONFIG_BYTES, TOKENIZER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.py")

TEXT_ASSETS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "added_tokens.json",
            "chat_template.jinja",
            "chat_template.json",
            "generation_config.json",
            "special_tokens_map.json",
            "tokenizer_config.json",
        ),
        CONFIG_BYTES,
    ),
    **dict.fromkeys(
        (
            "merges.txt",
            "sentencepiece.bpe.model",
            "spiece.model",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.json",
            "vocab.txt",
        ),
        TOKENIZER_BYTES,
    ),
}
"""Name to most bytes, of what a text model has beside ``config.json`` and weights."""

ASSETS: Mapping[str, int] = {
    **TEXT_ASSETS,
    **dict.fromkeys(
        (
            "config.json",
            "preprocessor_config.json",
            "processor_config.json",
            "video_preprocessor_config.json",
            # The licence goes where the weights go.
            "LICENSE",
            "LICENSE.md",
            "LICENSE.txt",
            "NOTICE",
            "NOTICE.txt",
        ),
        CONFIG_BYTES,
    ),
}
"""Name to most bytes, of the files that a bundle holds copies of."""


def find_assets(folder: Path, names: Iterable[str] = ASSETS) -> dict[str, Path]:
    """Return the files with these names that a checkpoint has; of others, `CONFIG_BYTES` at most.

    Raises:
        CheckpointError: One is no regular file, is too large, or is a link out of the checkpoint.
    """
    return _checked(
        {name: folder / name for name in sorted(names) if os.path.lexists(folder / name)}
    )


def find_code(folder: Path) -> dict[str, Path]:
    """Return the Python files of a checkpoint.

    They are copied on request, for scripts that hand a bundle to transformers with
    ``trust_remote_code``; nothing here imports them.

    Raises:
        CheckpointError: There are more than `CODE_FILES`, or one is refused as by `find_assets`.
    """
    names = sorted(path.name for path in folder.glob("*.py") if _MODULE.fullmatch(path.name))
    if len(names) > CODE_FILES:
        raise CheckpointError(
            f"{folder} has {len(names)} Python files, more than {CODE_FILES}",
            hint="leave only those of the published repository there",
        )
    return _checked({name: folder / name for name in names})


def _checked(found: dict[str, Path]) -> dict[str, Path]:
    for name, path in found.items():
        try:
            _check_place(path)
            open_regular(path, ASSETS.get(name, CONFIG_BYTES)).close()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"`{name}` cannot be copied: {reason(error)}\n  file: {path}",
                hint="put the published file there, or remove this one",
            ) from error
    return found


def _check_place(path: Path) -> None:
    """Refuse a link to what is neither in the folder nor in the hub's cache beside it."""
    target, folder = (Path(os.path.realpath(p, strict=True)) for p in (path, path.parent))
    places = [folder]
    if folder.parent.name == "snapshots":
        places.append(folder.parents[1] / "blobs")
    if not any(target.is_relative_to(place) for place in places):
        raise ValueError("it is a link to a file outside the folder")
