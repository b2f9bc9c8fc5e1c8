"""The settings of a checkpoint's image processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..errors import CheckpointError
from ..plain import parse
from .config import read_json

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
FLAT, NESTED, PART = "preprocessor_config.json", "processor_config.json", "image_processor"


def image_settings(folder: Path, kind: type[T]) -> T | None:
    """Return the settings of a checkpoint's image processor; None if it comes without.

    They lie in ``preprocessor_config.json``, or, as newer transformers write them, in the part
    ``image_processor`` of ``processor_config.json``.

    Args:
        folder: The checkpoint, or a folder with copies of its files: `Job.checkpoint.folder`.
        kind: A dataclass; see `axcore.Layout.config`.

    Raises:
        CheckpointError: A file cannot be read, or a value is none that `kind` allows; the message
            names its path.
    """
    for name in (NESTED, FLAT):
        path = folder / name
        if not path.exists():
            continue
        settings = read_json(path)
        if name == NESTED and PART not in settings:
            continue
        try:
            return parse(kind, settings if name == FLAT else settings[PART])
        except ValueError as error:
            raise CheckpointError(
                f"the image processor is not that of the model: {error}\n  file: {path}",
                hint="put the published file there",
            ) from error
    return None
