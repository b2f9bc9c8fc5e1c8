"""What a family says about a model without reading anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .choices import Choice
    from .component import Shape


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
    """

    height: int
    width: int
    prefill_len: int
    kv_cache_len: int
    last_kv_cache_len: tuple[int, ...] = ()
    images: int = 1
    about: str = ""

    @property
    def max_prompt(self) -> int:
        """Tokens of the longest prompt: the longest history and one more chunk."""
        return max(self.last_kv_cache_len, default=0) + self.prefill_len


@dataclass(frozen=True)
class ModelCard:
    """What a family says about one model, without reading anything.

    Attributes:
        id: The name on the command line, e.g. ``foo-vl-1b``.
        repo: Hugging Face repository; its last part names the exported files.
        architectures: Values of ``architectures[0]`` in ``config.json`` that this model may have.
        profiles: Task name to profile; the first is the default.
        aliases: Further names on the command line.
        licence: SPDX identifier or name of the weights' licence.
        parameters: Number of parameters of the published checkpoint.
        config: The published ``config.json``. Tells models of one architecture apart, and is what
            a fabricated checkpoint is made from.
        tiny: Nested overrides of `config` for a fabricated checkpoint that converts in seconds.
        prefixes: Canonical key prefix to the spellings met on disk, longest match first. Plugins
            use canonical keys only.
        text_prefixes: Canonical prefixes of the language model; every other tensor must be
            consumed by a vision stage.
        tensors: Names and shapes of all tensors (canonical keys) for a config. Checked against a
            checkpoint's headers, and used to fabricate one.
        spare: Canonical prefixes of tensors that a conversion may leave unused, be it that some
            form of the model does without them or that a checkpoint holds more than `tensors`
            lists.
        choices: Options of this model alone, by name; read with `Job.choice`.
        recognises: Tells from a config whether it is of this model, where several models share
            an architecture but not a layout. None takes every config of `architectures`.
        unsupported: Why the model cannot be converted, and what could be instead. Such a card is
            not listed; it lets a checkpoint be recognised and refused by name.
        text_model: Fields laid over the language model's part of the config to make it that of a
            plain text model (``architectures``, ``model_type`` and what differs), for tools that
            take a language model alone; None takes a field out. Needless where that part says so
            itself.
        files: Further small JSON files of the published checkpoint (name to content), such as
            ``preprocessor_config.json``, written when one is fabricated.
        tokens: Special tokens and their ids for a config: what the tokenizer of a fabricated
            checkpoint must know. None fabricates no tokenizer.
        axllm: Settings of Axera's ``axllm`` that only the family can know, in its own terms:
            ``tokenizer_type``, ``vlm_type`` and what else its ``config.json`` takes. Empty where
            it has no type for the model.
    """

    id: str
    repo: str
    architectures: tuple[str, ...]
    profiles: Mapping[str, Profile]
    aliases: tuple[str, ...] = ()
    licence: str = ""
    parameters: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    text_prefixes: tuple[str, ...] = ("model.", "lm_head.")
    tensors: Callable[[Mapping[str, Any]], Mapping[str, Shape]] | None = None
    spare: tuple[str, ...] = ()
    choices: Mapping[str, Choice] = field(default_factory=dict)
    recognises: Callable[[Mapping[str, Any]], bool] | None = None
    unsupported: str = ""
    text_model: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokens: Callable[[Mapping[str, Any]], Mapping[str, int]] | None = None
    axllm: Mapping[str, Any] = field(default_factory=dict)

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
