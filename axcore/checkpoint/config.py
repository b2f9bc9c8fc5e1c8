"""``config.json`` of a checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .. import foreign
from ..errors import CheckpointError
from ..limits import CONFIG_BYTES

if TYPE_CHECKING:
    from pathlib import Path


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` as plain JSON.

    Raises:
        CheckpointError: The file is missing, or not a JSON object.
    """
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint's settings.

    Raises:
        CheckpointError: The file is missing, cannot be read, or holds something else.
    """
    try:
        content = foreign.read_json(path, CONFIG_BYTES)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}")
        # What is read is written again elsewhere, where half of a surrogate pair would fail.
        json.dumps(content, ensure_ascii=False).encode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"no `{path.name}`\n  in: {path.parent}",
            hint="name the folder that holds `config.json` and the `*.safetensors` files",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"`{path.name}` is not a JSON object: {foreign.reason(error)}\n  file: {path}",
            hint="fetch the file again",
        ) from error
    return content
