"""Where a ``config.json`` has the language model's part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_PARTS = ("text_config", "llm_config")
"""The names under which layouts nest the language model's part."""


def config_parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the language model's part of a config, where one is nested, and then the whole."""
    nested = [config[name] for name in TEXT_PARTS if isinstance(config.get(name), Mapping)]
    return [*nested, config]


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a config: nested in some layouts, flat in others."""
    return config_parts(config)[0]
