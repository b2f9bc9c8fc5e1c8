"""What a family declares about a model before any checkpoint is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .choices import Choice  # at run time: cards are checked by these types
from .component import Shape

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Lengths:
    """Static lengths of a language model: see `Profile`."""

    prefill_len: int
    kv_cache_len: int
    last_kv_cache_len: tuple[int, ...] = ()


@dataclass(frozen=True)
class Profile:
    """One way of using a model: image size and the language model's static lengths.

    Attributes:
        height, width: Image size in px.
        prefill_len: Tokens of one prefill chunk (P).
        kv_cache_len: Slots of the key/value cache (C); prompt and answer share C + 1 positions.
        last_kv_cache_len: History lengths of further prefill groups; empty means that a prompt
            is one chunk.
        images: Images of one prompt, counted in runs of the vision graph.
        about: One line for people.
        published: The lengths of the published build, where they are others.
        names: Component to the stem by which published scripts open its graph, where that is
            another than the component's own.
    """

    height: int
    width: int
    prefill_len: int
    kv_cache_len: int
    last_kv_cache_len: tuple[int, ...] = ()
    images: int = 1
    about: str = ""
    published: Lengths | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def max_prompt(self) -> int:
        """Tokens of the longest prompt: the longest history and one more chunk."""
        return max(self.last_kv_cache_len, default=0) + self.prefill_len


@dataclass(frozen=True)
class Published:
    """The small files of a published checkpoint, from which one with random weights is made.

    Attributes:
        config: The content of ``config.json``. Also decides between models of one architecture:
            a checkpoint belongs to the one whose published config agrees in most fields.
        files: Further JSON files (name to content), such as ``preprocessor_config.json``.
        tiny: Nested overrides of `config` for a checkpoint that converts in seconds.
        tokens: Returns the special tokens and their ids for a config, for the tokenizer of a
            fabricated checkpoint. None fabricates no tokenizer.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tokens: Callable[[Mapping[str, Any]], Mapping[str, int]] | None = None

    @classmethod
    def read(cls, folder: Path, **others: Any) -> Published:
        """Read ``config.json`` and all other JSON files of `folder`.

        Args:
            folder: Package data of a family, laid out like the published repository.
            others: Further attributes.

        >>> Published.read(Path(__file__).parent / "data" / "foo-vl-1b", tiny=TINY)
        """
        files = {path.name: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
        return cls(files.pop("config.json"), files, **others)

    @property
    def tiny_config(self) -> dict[str, Any]:
        """`config` with the overrides of `tiny` applied."""
        return _merge(self.config, self.tiny)


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in overrides.items():
        under = merged.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _merge(under, value)
        merged[name] = value
    return merged


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names its tensors, and which of them belong to the language model.

    Attributes:
        tensors: Returns name (canonical key) and shape of every tensor for a config. Checked
            against a checkpoint's headers, and used to fabricate one. None skips the check.
        prefixes: Canonical key prefix to the spellings found on disk; the longest match wins.
            Plugins use canonical keys only.
        text_prefixes: Canonical prefixes of the language model. Every other tensor must be used
            by a vision stage.
        spare: Canonical prefixes of tensors that a conversion may leave unused, because some form
            of the model does without them or because checkpoints hold more than `tensors` lists.
        text_model: Config fields that turn the language model's part of the config into that of a
            plain text model (``architectures``, ``model_type`` and whatever differs), for tools
            that take a language model alone. None as a value removes the field. Empty if that part
            of the config is complete.
        config: A dataclass by which every ``config.json`` is read before anything else; unknown
            names are ignored. Its annotations say what can be converted: `axcore.Layers` and
            `axcore.Count` bound numbers, ``Literal["gelu"]`` refuses all else. What the core reads
            of the language model's part is checked without it.
    """

    tensors: Callable[[Mapping[str, Any]], Mapping[str, Shape]] | None = None
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    text_prefixes: tuple[str, ...] = ("model.", "lm_head.")
    spare: tuple[str, ...] = ()
    text_model: Mapping[str, Any] = field(default_factory=dict)
    config: type | None = None


@dataclass(frozen=True)
class ModelCard:
    """One model of a family. The first four fields are all that a conversion needs.

    Attributes:
        id: The name on the command line, e.g. ``foo-vl-1b``.
        repo: Hugging Face repository; its last part names the exported files.
        architectures: Values of ``architectures[0]`` in ``config.json`` that this model may have.
        profiles: Task name to profile; the first is the default.
        aliases: Further names on the command line.
        licence: SPDX identifier or name of the weights' licence.
        parameters: Number of parameters of the published checkpoint.
        choices: Options that only this model has, by name; read with `Job.choice`.
        recognises: Says whether a config is of this model, for models that share an architecture
            but not a layout. None accepts every config with one of `architectures`.
        unsupported: Why the model cannot be converted, and what can be instead. Such a card is not
            listed; it lets a checkpoint be recognised and refused by name.
        layout: How checkpoints name their tensors.
        published: Config and further small files, to convert without downloading weights.
        runtimes: Settings for runtimes that need to be told about the model, in their own terms,
            by runtime; e.g. ``{"axllm": {"tokenizer_type": ..., "vlm_type": ...}}``. A runtime
            that has no support for the model is left out.
    """

    id: str
    repo: str
    architectures: tuple[str, ...]
    profiles: Mapping[str, Profile]
    aliases: tuple[str, ...] = ()
    licence: str = ""
    parameters: int = 0
    choices: Mapping[str, Choice] = field(default_factory=dict)
    recognises: Callable[[Mapping[str, Any]], bool] | None = None
    unsupported: str = ""
    layout: Layout = field(default_factory=Layout)
    published: Published = field(default_factory=Published)
    runtimes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The repository's last part, e.g. ``Foo-VL-1B``."""
        return self.repo.rpartition("/")[2]


@dataclass(frozen=True)
class Entry:
    """A model that is installed: its card, and the family that it comes from."""

    family: str
    card: ModelCard

    def __repr__(self) -> str:
        return f"<Entry {self.family}/{self.card.id}>"
