"""The small files of a published repository, from which a package is derived."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..foreign import read_bytes, read_json, reason
from ..limits import CONFIG_BYTES, COUNT, LAYERS
from ..plain import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG = "config.json"
_SETTINGS = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
             "chat_template.json", "generation_config.json")  # fmt: skip
_TEMPLATE = "chat_template.jinja"
_LAYERS = re.compile(r"layers|depth|blocks|experts|levels")
_SIDE = 448  # px, where nothing says how large an image is
_MOST_SIDE = 1024  # px; towers of dynamic resolution name the largest they take


@dataclass(frozen=True)
class Source:
    """What is published beside the weights.

    Attributes:
        config: ``config.json``.
        files: Further settings, by file name.
        template: The chat template; empty where there is none.
    """

    config: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    template: str = ""

    @classmethod
    def read(cls, config: Path) -> Source:
        """Read ``config.json`` and the settings that lie beside it.

        Raises:
            CheckpointError: It cannot be read, or is no object.
        """
        folder = config.parent
        files = {name: _object(folder / name) for name in _SETTINGS if (folder / name).is_file()}
        template = folder / _TEMPLATE
        if template.is_file():
            text = read_bytes(template, CONFIG_BYTES).decode(errors="replace")
        else:
            text = _template(files)
        content = _object(config)
        _check_sizes(content, "")
        return cls(content, files, text)

    @property
    def image(self) -> Mapping[str, Any]:
        """The image processor's settings; empty where none are published."""
        nested = self.files.get("processor_config.json", {}).get("image_processor")
        found = self.files.get("preprocessor_config.json") or nested
        return found if isinstance(found, dict) else {}

    @property
    def side(self) -> int:
        """Height and width of an image, px."""
        vision = self.config.get("vision_config")
        size = self.image.get("crop_size") or self.image.get("size") or {}
        names = ("shortest_edge", "height", "width")
        sides = [size.get(name) for name in names] if isinstance(size, dict) else [size]
        named = vision.get("image_size") if isinstance(vision, dict) else None
        named = named[0] if isinstance(named, list) and named else named
        for value in (named, *sides):
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return min(value, _MOST_SIDE)
        return _SIDE

    @property
    def token_texts(self) -> dict[int, str]:
        """The added tokens by id, as the tokenizer's settings list them."""
        added = self.files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {})
        return {
            int(number): str(token["content"])
            for number, token in (added.items() if isinstance(added, dict) else ())
            if isinstance(token, dict) and "content" in token and number.isdecimal()
        }

    @property
    def names(self) -> dict[str, Any]:
        """What a chat template may refer to: ``bos_token`` and its like."""
        settings = self.files.get("tokenizer_config.json", {})
        texts = {
            name: value.get("content") if isinstance(value, dict) else value
            for name, value in settings.items()
            if name.endswith("_token")
        }
        return {name: text for name, text in texts.items() if isinstance(text, str)}


def _check_sizes(config: Mapping[str, Any], where: str) -> None:
    """Refuse numbers by which a class would make more than any model has."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, f"{where}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            most = LAYERS if _LAYERS.search(name) else COUNT
            if abs(value) > most:
                raise CheckpointError(
                    f"{where}{name}: {shown(value)} is more than {most}",
                    hint="name a published config.json",
                )


def _template(files: Mapping[str, Mapping[str, Any]]) -> str:
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = files.get(name, {}).get("chat_template")
        if isinstance(found, str):
            return found
    return ""


def _object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}: {reason(error)}", hint="name a published config.json"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} holds {shown(found)}, not an object", hint="name a published config.json"
        )
    return found
