"""Write a family's package from what is published beside a checkpoint."""

from __future__ import annotations

import json
import keyword
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import UnsupportedModel, UsageError
from ..files import appearing
from ..plain import shown
from .chat import Chat, find_chat
from .source import CONFIG, Source
from .tower import Tower, find_tower, tiny_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

TEMPLATES = Path(__file__).parents[1] / "data" / "plugin"
EXAMPLE = TEMPLATES / "example" / CONFIG
"""The config of a model that nobody published: a ViT and a projector before a language model."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_CLASS = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)
_PIXELS = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CHUNK = 64  # lengths of prompts are multiples of this
_LINE = 88  # characters, as formatters have it by default
_TURNS = 128  # tokens of a chunk that are no rows of an image
_PLAIN = Chat({("", "user"): "", ("user", ""): "\n", ("user", "assistant"): "\n",
               ("assistant", "user"): "\n"}, "<image>")  # fmt: skip
"""What stands in for a chat template that could not be derived."""


@dataclass(frozen=True)
class Written:
    """A package that was written.

    Attributes:
        folder: Where it lies.
        todo: What could not be derived: topic to the reason.
    """

    folder: Path
    todo: Mapping[str, str] = field(default_factory=dict)


def new_plugin(name: str, config: Path | None, out: Path, repo: str = "") -> Written:
    """Write a package for the model that a ``config.json`` describes.

    What lies beside the config (``preprocessor_config.json``, the chat template, the tokenizer's
    settings) is used too. What cannot be derived is left out, with a test that fails and says so.
    Nothing of the files becomes code: values are written as literals.

    Args:
        name: Of the family: lower-case letters, digits and underscores.
        config: A published ``config.json``; None takes `EXAMPLE`.
        out: The folder in which the package's folder appears.
        repo: Hugging Face repository of the model; names it.

    Raises:
        CheckpointError: A file cannot be read.
        UsageError: The name does not fit, or the folder exists.
        UnsupportedModel: The config names no class that transformers has.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(
            f"{shown(name)} is no name of a family",
            hint="take lower-case letters, digits and underscores, e.g. `foovl`",
        )
    if repo and not _REPO.fullmatch(repo):
        raise UsageError(f"{shown(repo)} is no repository", hint="name it as `owner/name`")
    folder = out / f"axcore_plugins_{name}"
    if folder.exists():
        raise UsageError(f"{folder} exists already", hint="choose another name, or remove it")
    plugin = _Plugin.of(name, Source.read(config or EXAMPLE), repo or f"{name}/{name}")
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
        architecture = (source.config.get("architectures") or [None])[0]
        if not isinstance(architecture, str) or not _CLASS.fullmatch(architecture):
            raise UnsupportedModel(
                f"the config names no architecture, but {shown(architecture)}",
                hint="take the config.json of a whole model",
            )
        todo: dict[str, str] = {}
        tower, chat = None, _PLAIN
        try:
            tower = find_tower(source.config, source.side)
        except UnsupportedModel as error:
            todo["vision"] = error.message
        try:
            if not source.template:
                raise UnsupportedModel("no chat template lies beside the config")
            chat = find_chat(source.template, source.names)
        except UnsupportedModel as error:
            todo["prompt"] = error.message
        if refused := _language(source.config):
            todo["language"] = refused
        return cls(name, repo, source, tower, chat, todo)

    @property
    def id(self) -> str:
        """The model's name on the command line."""
        return self.repo.rpartition("/")[2].lower()

    def files(self) -> dict[str, str]:
        """Return the content of every file by its name."""
        written = {
            "pyproject.toml": "pyproject.toml",
            "README.md": "README.md",
            ".github/workflows/tests.yml": "ci.yml",
            "__init__.py": "init.py",
            "vision.py": "vision.py" if self.tower else "vision_todo.py",
            "prompt.py": "prompt.py",
            "oracle.py": "oracle.py",
            f"tests/test_{self.name}.py": "test.py",
        }
        files = {
            path: Template((TEMPLATES / f"{name}.txt").read_text()).substitute(self._names)
            for path, name in written.items()
        }
        data = {CONFIG: self.source.config, "preprocessor_config.json": self.source.image}
        for name, content in data.items():
            if content:
                files[f"data/{self.id}/{name}"] = json.dumps(content, indent=2) + "\n"
        return files

    @cached_property
    def _names(self) -> dict[str, Any]:
        """Return what the templates refer to; whatever a stranger wrote is a literal here."""
        return {**self._of_package(), **self._of_model(), **self._of_tower(), **self._of_prompt()}

    def _of_package(self) -> dict[str, Any]:
        from .. import __version__
        from ..hookspecs import CONTRACT

        derived = "All of it could be derived."
        if self.todo:
            topics = ", ".join(self.todo)
            derived = f"Not derived: {topics}; a test fails for each and says why."
        return {
            "name": self.name,
            "package": f"axcore_plugins_{self.name}",
            "distribution": f"axcore-plugins-{self.name}".replace("_", "-"),
            "version": __version__.rpartition(".")[0],
            "contract": CONTRACT,
            "title": self.repo.rpartition("/")[2],
            "repo": self.repo,
            "id": self.id,
            "state": derived,
            "todos": "".join(_todo_test(*item) for item in self.todo.items()),
        }

    def _of_model(self) -> dict[str, Any]:
        config, rows = self.source.config, self.tower.rows if self.tower else 1
        prefill = -(-(rows + _TURNS) // _CHUNK) * _CHUNK
        vocabulary = (
            'config["text_config"]["vocab_size"]'
            if isinstance(config.get("text_config"), dict)
            else 'config["vocab_size"]'
        )
        return {
            "architecture": config["architectures"][0],
            "prefill": prefill,
            "histories": _literal(tuple(n * prefill for n in (1, 2, 3))),
            "cache": 4 * prefill + 1023,
            "tiny": _literal(self.tower.tiny if self.tower else tiny_sizes(config)),
            "vocabulary": vocabulary,
        }

    def _of_tower(self) -> dict[str, Any]:
        tower, batched = self.tower, self.tower is not None and len(self.tower.shape) > 4
        mean, std = (self._bytes(name) for name in ("image_mean", "image_std"))
        resized = self._resized()
        features = tower.features.rstrip() if tower else ""
        return {
            "side": self.source.side,
            "rows": tower.rows if tower else 1,
            "mean": mean,
            "std": std,
            "shape": "(1, 1, 3, SIDE, SIDE)" if batched else "(1, 3, SIDE, SIDE)",
            "calibration": _NUMPY if batched else _IMAGE,
            "sample": _BATCHED if batched else _ONE,
            "resized": resized,
            "pillow": "Image, ImageOps" if "ImageOps" in resized else "Image",
            "joined": "pixels.transpose(0, 1)" if batched else "pixels",
            "further": "".join(text for name, text in _FURTHER.items() if f"{name}=" in features),
            "prefixes": _literal(tower.prefixes if tower else {}),
            "text_prefixes": _literal(
                tower.text_prefixes if tower else ("model.", "lm_head."), 0, len("TEXT_PREFIXES = ")
            ),
            "spare": _literal(tower.unused if tower else (), 0, len("SPARE: tuple[str, ...] = ")),
            "blocks": _literal(tower.blocks if tower else ""),
            "count": f"len(model.get_submodule(BLOCKS)) - {tower.skipped}" if tower else "0",
            "features": features,
            "reason": _literal(self.todo.get("vision", "")),
        }

    def _of_prompt(self) -> dict[str, Any]:
        before, marker, after = self._image()
        return {
            "joints": _literal(dict(self.chat.joints)),
            "before": _literal(before),
            "marker": _literal(marker),
            "after": _literal(after),
            "tokens": _literal(self._tokens(marker)),
        }

    def _resized(self) -> str:
        """Return what makes an image of any size as large as the tower's, as an expression."""
        image = self.source.image
        number, size = image.get("resample"), image.get("size")
        method = number if type(number) is int and number in range(6) else 3
        cropped = isinstance(size, dict) and "shortest_edge" in size and "crop_size" in image
        call = "ImageOps.fit(image, {})" if cropped else "image.resize({})"
        return call.format(f"(SIDE, SIDE), Image.Resampling.{Image.Resampling(method).name}")

    def _bytes(self, name: str) -> tuple[float, ...]:
        """Return mean or deviation in units of a byte."""
        found = self.source.image.get(name)
        values = found if isinstance(found, list) and len(found) == 3 else _PIXELS[name]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            values = _PIXELS[name]
        return tuple(round(255 * float(value), 4) for value in values)

    def _image(self) -> tuple[str, str, str]:
        """Return what is before the marker of an image, the marker, and what is behind."""
        known = {*self.source.token_texts.values(), *self.source.names.values()}
        number = self._image_token[1]
        marker = self.source.token_texts.get(number, "") if number is not None else ""
        if not marker or marker not in self.chat.image:
            inside = [text for text in known if text and text in self.chat.image]
            marker = max(inside, key=len, default=self.chat.image.strip() or "<image>")
        before, _, after = self.chat.image.partition(marker)
        return before, marker, after

    @property
    def _image_token(self) -> tuple[str, int | None]:
        """Return the config's name of the image token, and its id."""
        for name in ("image_token_id", "image_token_index"):
            if isinstance(number := self.source.config.get(name), int):
                return name, number
        return "", None

    def _tokens(self, marker: str) -> dict[str, str]:
        """Return the markers, each with the config's name of its id, where it has one."""
        texts = {self.chat.image, *self.chat.joints.values()}
        known = {*self.source.token_texts.values(), *self.source.names.values()} - {"", marker}
        used = sorted(text for text in known if any(text in other for other in texts))
        return {marker: self._image_token[0], **dict.fromkeys(used, "")}


_IMAGE = 'Calibration("Image", mean=MEAN, std=STD, tensor_format="RGB")'
_NUMPY = 'Calibration("Numpy")'
_ONE = """\
        yield {"pixel_values": np.asarray(resized(image))}"""
_BATCHED = """\
        pixels = np.asarray(resized(image), np.float32)
        pixels = ((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)
        yield {"pixel_values": np.ascontiguousarray(pixels[None, None])}"""
_FURTHER = {
    "image_sizes": """
        "image_sizes": torch.tensor([pixels.shape[-2:]] * len(samples)),""",
    "pixel_attention_mask": """
        "pixel_attention_mask": torch.ones(
            (1, len(samples), *pixels.shape[-2:]), dtype=torch.bool
        ),""",
}
"""What the class takes beside pixels, by its name in `Tower.features`, for images of one size."""


def _language(config: Mapping[str, Any]) -> str:
    """Return why the default decoder refuses a language model; empty where it does not."""
    from ..checkpoint import Checkpoint
    from ..job import Job
    from ..language.architectures import described
    from ..model_card import ModelCard, Profile
    from ..request import Options

    card = ModelCard("", "", (), {})
    checkpoint = Checkpoint(Path(), dict(config), (), {})
    try:
        described(Job(card, "", checkpoint, "", Profile(1, 1, 1, 1), Options()))
    except UnsupportedModel as error:
        return error.message
    except (KeyError, TypeError, ValueError) as error:
        return f"the config of the language model cannot be read: {error}"
    return ""


# Source ------------------------------------------------------------------------------------------


def _literal(value: Any, indent: int = 0, before: int = 0) -> str:
    """Return a value as source, as formatters write it.

    Args:
        value: Of JSON, or tuples of strings and numbers.
        indent: Of the line that it begins in.
        before: Characters that stand before it in its line.
    """
    if isinstance(value, str):
        return _text(value)
    inside, end = " " * (indent + 4), " " * indent
    if isinstance(value, tuple):
        items = [_literal(item) for item in value]
        whole = f"({', '.join(items)}{',' * (len(items) == 1)})"
        if len(items) < 2 or before + len(whole) < _LINE:
            return whole
        return "(\n" + "".join(f"{inside}{item},\n" for item in items) + end + ")"
    if not isinstance(value, dict) or not value:
        return repr(value)
    lines = []
    for name, item in value.items():
        key = f"{inside}{_literal(name)}: "
        lines.append(f"{key}{_literal(item, indent + 4, len(key))},\n")
    return "{\n" + "".join(lines) + end + "}"


def _text(value: str) -> str:
    """Return a string as a literal of one line, with as few escapes as formatters leave."""
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return repr(value)
    body = json.dumps(value, ensure_ascii=False)[1:-1]
    if value.count('"') > value.count("'"):
        plain = body.replace('\\"', '"').replace("'", "\\'")
        return f"'{plain}'"
    return f'"{body}"'


def _todo_test(topic: str, reason: str) -> str:
    return f'''

def test_{topic}_is_written() -> None:
    """What could not be derived; remove this test when it is written by hand."""
    reason = {_text(reason)}
    raise AssertionError(reason)
'''
