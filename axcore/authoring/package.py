"""Write a family's package from what is published beside a checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import UnsupportedModel, UsageError
from ..files import appearing
from .chat import Chat, find_chat
from .source import CONFIG, Source
from .tower import Tower, find_tower

if TYPE_CHECKING:
    from collections.abc import Mapping

TEMPLATES = Path(__file__).parents[1] / "data" / "plugin"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_PIXELS = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CHUNK = 64  # lengths of prompts are multiples of this
_PLAIN = Chat({("", "user"): "", ("user", ""): "\n", ("user", "assistant"): "\n",
               ("assistant", "user"): "\n"}, "<image>")  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A package that was written.

    Attributes:
        folder: Where it lies.
        todo: What could not be derived: topic to the reason.
    """

    folder: Path
    todo: Mapping[str, str] = field(default_factory=dict)


def new_plugin(name: str, config: Path, out: Path, repo: str = "") -> Written:
    """Write a package for the model that a ``config.json`` describes.

    What lies beside the config (``preprocessor_config.json``, the chat template, the tokenizer's
    settings) is used too. What cannot be derived is left out, with a test that fails and says so.

    Args:
        name: Of the family: lower-case letters, digits and underscores.
        config: A published ``config.json``.
        out: The folder in which the package's folder appears.
        repo: Hugging Face repository of the model; names it.

    Raises:
        CheckpointError: A file cannot be read.
        UsageError: The name does not fit, or the folder exists.
        UnsupportedModel: The config names no class that transformers has.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` is no name of a family",
            hint="take lower-case letters, digits and underscores, e.g. `foovl`",
        )
    package = f"axcore_plugins_{name}"
    folder = out / package
    if folder.exists():
        raise UsageError(f"{folder} exists already", hint="choose another name, or remove it")
    plugin = _Plugin.of(name, Source.read(config), repo)
    with appearing(folder) as partial:
        for path, text in plugin.files().items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text, encoding="utf-8")
    return Written(folder, plugin.todo)


@dataclass(frozen=True)
class _Plugin:
    """What the files of a package say."""

    name: str
    repo: str
    source: Source
    tower: Tower | None
    chat: Chat
    todo: Mapping[str, str]

    @classmethod
    def of(cls, name: str, source: Source, repo: str) -> _Plugin:
        todo: dict[str, str] = {}
        architecture = (source.config.get("architectures") or [None])[0]
        if not isinstance(architecture, str) or not architecture.isidentifier():
            raise UnsupportedModel(
                "the config names no architecture", hint="take the config.json of a whole model"
            )
        try:
            tower: Tower | None = find_tower(source.config, source.side)
        except UnsupportedModel as error:
            tower, todo["vision"] = None, str(error)
        try:
            if not source.template:
                raise UnsupportedModel("no chat template lies beside the config")
            chat = find_chat(source.template, source.names)
        except UnsupportedModel as error:
            chat, todo["prompt"] = _PLAIN, str(error)
        return cls(name, repo or f"{name}/{name}", source, tower, chat, todo)

    @property
    def id(self) -> str:
        """The model's name on the command line."""
        return self.repo.rpartition("/")[2].lower()

    def files(self) -> dict[str, str]:
        """Return the content of every file by its name."""
        from .. import __version__

        names = {**self._names(), "version": __version__.rpartition(".")[0]}
        written = {
            "pyproject.toml": "pyproject.toml",
            "README.md": "README.md",
            ".github/workflows/tests.yml": "ci.yml",
            "__init__.py": "init.py",
            "vision.py": "vision.py" if self.tower else "vision_todo.py",
            "prompt.py": "prompt.py",
            f"tests/test_{self.name}.py": "test.py",
        }
        files = {
            path: Template((TEMPLATES / f"{template}.txt").read_text()).substitute(names)
            for path, template in written.items()
        }
        data = {CONFIG: self.source.config, "preprocessor_config.json": self.source.image}
        for file, content in data.items():
            if content:
                files[f"data/{self.id}/{file}"] = json.dumps(content, indent=2) + "\n"
        return files

    def _names(self) -> dict[str, Any]:
        config, tower = self.source.config, self.tower
        side = self.source.side
        rows = tower.rows if tower else 1
        prefill = -(-(rows + 128) // _CHUNK) * _CHUNK
        batched = tower is not None and len(tower.shape) > 4
        mean, std = (self._bytes(name) for name in ("image_mean", "image_std"))
        before, marker, after = self._image()
        return {
            "name": self.name,
            "package": f"axcore_plugins_{self.name}",
            "distribution": f"axcore-plugins-{self.name}".replace("_", "-"),
            "title": self.repo.rpartition("/")[2],
            "id": self.id,
            "repo": self.repo,
            "origin": f" from the config of `{self.repo}`",
            "state": self._state(),
            "architecture": (tower.architecture if tower else config["architectures"][0]),
            "side": side,
            "rows": rows,
            "mean": mean,
            "std": std,
            "shape": repr(tower.shape) if tower else "(1, 3, SIDE, SIDE)",
            "calibration": _NUMPY if batched else _IMAGE,
            "sample": _BATCHED if batched else _PLAIN_SAMPLE,
            "resized": self._resized(),
            "pillow": "from PIL import Image, ImageOps"
            if "ImageOps" in self._resized()
            else "from PIL import Image",
            "inputs": _BATCHED_INPUTS if batched else _PLAIN_INPUTS,
            "tiny": _literal(tower.tiny if tower else {}),
            "prefill": prefill,
            "cache": prefill + 1023,
            "prefixes": _literal(tower.prefixes if tower else {}, 16),
            "text_prefixes": _literal(tower.text_prefixes if tower else ("model.", "lm_head.")),
            "spare": f"\n                spare={_literal(tower.unused)},"
            if tower and tower.unused
            else "",
            "blocks": tower.blocks if tower else "",
            "skipped": f" - {tower.skipped}" if tower and tower.skipped else "",
            "features": tower.features.rstrip() if tower else "",
            "joints": _literal(dict(self.chat.joints)),
            "image": _literal((before, marker, after)),
            "tokens": _literal(self._tokens(marker)),
            "vocabulary": 'config["text_config"]["vocab_size"]'
            if "text_config" in config
            else 'config["vocab_size"]',
            "reason": self.todo.get("vision", "").splitlines()[0:1] and "the tower",
            "message": repr(self.todo.get("vision", "")),
            "todos": "".join(_todo_test(*item) for item in self.todo.items()),
        }

    def _state(self) -> str:
        if not self.todo:
            return "All of it could be derived."
        return f"Not derived: {', '.join(self.todo)}; a test fails for each and says why."

    def _resized(self) -> str:
        """Return what makes an image of any size as large as the tower's, as an expression."""
        image = self.source.image
        number = image.get("resample")
        method = number if isinstance(number, int) and number in range(6) else 3
        filter_name = Image.Resampling(method).name
        size = image.get("size")
        cropped = isinstance(size, dict) and "shortest_edge" in size and "crop_size" in image
        call = (
            "ImageOps.fit(image, (SIDE, SIDE), {})"
            if cropped
            else ("image.resize((SIDE, SIDE), {})")
        )
        return call.format(f"Image.Resampling.{filter_name}")

    def _bytes(self, name: str) -> tuple[float, ...]:
        """Return mean or deviation in units of a byte."""
        found = self.source.image.get(name)
        values = found if isinstance(found, list) and len(found) == 3 else _PIXELS[name]
        return tuple(round(255 * float(value), 4) for value in values)

    def _image(self) -> tuple[str, str, str]:
        """Return what is before the marker of an image, the marker, and what is behind."""
        known = {*self.source.token_texts.values(), *self.source.names.values()}
        number = self._image_token[1]
        marker = self.source.token_texts.get(number, "") if number is not None else ""
        if marker not in self.chat.image or not marker:
            marker = max(
                (text for text in known if text in self.chat.image), key=len, default=""
            ) or self.chat.image.strip() or "<image>"  # fmt: skip
        before, _, after = self.chat.image.partition(marker)
        return before, marker, after

    @property
    def _image_token(self) -> tuple[str, int | None]:
        """Return the config's name of the image token, and its id."""
        for name in ("image_token_id", "image_token_index"):
            if isinstance(number := self.source.config.get(name), int):
                return name, number
        return "", None

    def _tokens(self, marker: str) -> dict[str, str | int]:
        """Return the markers, each with the config's name of its id, where it has one."""
        texts = {self.chat.image, *self.chat.joints.values()}
        known = {*self.source.token_texts.values(), *self.source.names.values()}
        used = sorted(text for text in known if any(text in other for other in texts))
        found: dict[str, str | int] = dict.fromkeys((text for text in used if text != marker), 0)
        return {marker: self._image_token[0], **found}


_IMAGE = 'Calibration("Image", mean=MEAN, std=STD, tensor_format="RGB")'
_NUMPY = 'Calibration("Numpy")'
_PLAIN_SAMPLE = """\
        yield {"pixel_values": np.asarray(resized(image))}"""
_BATCHED = """\
        pixels = np.asarray(resized(image), np.float32)
        normalised = (pixels - np.float32(MEAN)) / np.float32(STD)
        yield {"pixel_values": np.ascontiguousarray(normalised.transpose(2, 0, 1)[None, None])}"""
_PLAIN_INPUTS = '"pixel_values": samples["pixel_values"]'
_BATCHED_INPUTS = '"pixel_values": samples["pixel_values"].transpose(0, 1)'


def _literal(value: Any, indent: int = 0) -> str:
    """Return a value as source, an item to a line, as formatters write it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if not isinstance(value, dict) or not value:
        return repr(value)
    inside = " " * (indent + 4)
    items = (f"{inside}{_literal(k)}: {_literal(v, indent + 4)},\n" for k, v in value.items())
    return "{\n" + "".join(items) + " " * indent + "}"


def _todo_test(topic: str, reason: str) -> str:
    return f'''

def test_{topic}_is_written() -> None:
    """What could not be derived; remove this test when it is written by hand."""
    raise AssertionError({reason!r})
'''
