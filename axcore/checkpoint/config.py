"""``config.json`` of a checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` as plain JSON.

    Raises:
        CheckpointError: The file is missing, or not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"no `config.json`\n  in: {folder}",
            hint="name the folder that holds `config.json` and the `*.safetensors` files",
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"`{path.name}` is not a JSON object: {error}\n  file: {path}",
            hint="fetch the file again",
        ) from error
    return content
