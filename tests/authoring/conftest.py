"""Configs of a small llava, from which packages are derived."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from axcore.authoring.package import EXAMPLE

Publish = Callable[..., Path]


@pytest.fixture
def published(tmp_path: Path) -> Publish:
    """Return a function that writes the example's small files, some of them changed."""

    def publish(changes: dict[str, Any] | None = None, **files: Any) -> Path:
        folder = tmp_path / "published"
        folder.mkdir()
        for path in EXAMPLE.parent.iterdir():
            name = path.name.partition(".")[0]
            content = files.get(name, path.read_text())
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / path.name).write_text(text)
        config = merged(json.loads((folder / "config.json").read_text()), changes or {})
        (folder / "config.json").write_text(json.dumps(config))
        return folder / "config.json"

    return publish


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    made = deepcopy(base)
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(made.get(name), dict)
        made[name] = merged(made[name], value) if nested else value
    return made
