"""The architectures of language models that the default decoder computes, as data.

``data/architectures.json`` lists them by the ``model_type`` that transformers gives them. A test
holds each against transformers' own class. What is not listed is unbuilt by name: an architecture,
and every field of a config that is neither read nor known to change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UnsupportedModel
from ..foreign import decode_json
from ..plain import parse, shown

if TYPE_CHECKING:
    from ..job import Job

HINT = "build the language model with a toolchain that has its own builder"
_ROTARY = frozenset(
    (
        "attention_factor",
        "factor",
        "long_factor",
        "mrope_interleaved",
        "mrope_section",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "rope_type",
        "short_factor",
        "type",
    )
)


@dataclass(frozen=True)
class Fields:
    """What is known of the fields of a config.

    Attributes:
        read: Those that are implemented.
        harmless: Patterns of those that do not change what is computed, or that only repeat what
            the tensors show, such as whether there are biases.
        neutral: Name to the values that change nothing.
    """

    read: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    neutral: Mapping[str, Any] = field(default_factory=dict)

    def knows(self, name: str, value: object) -> bool | None:
        """Whether a field may have this value; None if the field is not known at all."""
        if name in self.neutral:
            return value in self.neutral[name]
        listed = name in self.read or any(fnmatchcase(name, one) for one in self.harmless)
        return listed or None


@dataclass(frozen=True)
class Architecture(Fields):
    """How the layers of an architecture differ from those of Llama.

    Attributes:
        oracle: The class of transformers that it is tested against.
        aliases: Further values of ``model_type`` that mean the same.
        defaults: Values of fields that a config leaves out, as transformers fills them in.
        norms: 2, before attention and MLP; or 4, behind each as well.
        zero_centred: Whether norms multiply by 1 + weight.
        qk_norm: Whether queries and keys are normalised head by head.
        gate: Whether attention is multiplied by a gate that comes with the queries.
        pairs: Which values of a head are rotated together: those half a head apart, or neighbours.
        interleaved: Whether the three axes of positions take turns among the pairs.
        activations: Names of activations that stand for another.
        embedding: What rows of the embedding are multiplied by.
        names: Names of modules here to those in checkpoints, where they differ.
    """

    oracle: str = ""
    aliases: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    norms: Literal[2, 4] = 2
    zero_centred: bool = False
    qk_norm: bool = False
    gate: bool = False
    pairs: Literal["halves", "neighbours"] = "halves"
    interleaved: bool = False
    activations: Mapping[str, str] = field(default_factory=dict)
    embedding: Literal["nothing", "root of the width"] = "nothing"
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Architectures:
    """The list: what holds for all, and each by its ``model_type``."""

    common: Fields
    architectures: Mapping[str, Architecture]

    def find(self, kind: object) -> Architecture | None:
        """Return the architecture that a ``model_type`` means."""
        for name, known in self.architectures.items():
            if kind == name or kind in known.aliases:
                return known
        return None


@cache
def listed() -> Architectures:
    """Return all architectures of ``data/architectures.json``."""
    data = resources.files("axcore").joinpath("data/architectures.json").read_bytes()
    return parse(Architectures, decode_json(data))


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a language model's config without unset fields and with those that it leaves out.

    A field that is null is unset, whatever its default.
    """
    known = listed().find(config.get("model_type"))
    filled = {**(known.defaults if known else {}), **config}
    return {name: value for name, value in filled.items() if value is not None}


def architecture_of(job: Job) -> tuple[str, Architecture] | None:
    """Return ``model_type`` and architecture of a job's language model; None if it is not listed.

    It is that of the config, or else that of the text model that the card names
    (`Layout.text_model`).
    """
    for part in (job.text_config, job.card.layout.text_model):
        kind = part.get("model_type")
        if found := listed().find(kind):
            return str(kind), found
    return None


def described(job: Job) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture of a job's language model, and its config with defaults.

    Fields which the card removes from the text model (`Layout.text_model`) are not its own.

    Raises:
        UnsupportedModel: The architecture is not listed, or a field of the config is unknown.
    """
    config, named = job.text_config, job.card.layout.text_model
    known = architecture_of(job)
    if known is None:
        raise unbuilt(f"the architecture {shown(config.get('model_type'))}")
    kind, found = known
    removed = {name for name, value in named.items() if value is None}
    for name, value in config.items():
        if value is not None and name not in removed:
            _check(found, name, value)
    config = with_defaults({**config, "model_type": kind})
    for name in ("rope_parameters", "rope_scaling"):
        _check_rotary(name, config.get(name) or {}, config)
    return found, config


def unbuilt(what: str) -> UnsupportedModel:
    """Return what to raise for a language model that has `what`."""
    return UnsupportedModel(
        f"the language model has {what}; layers of this kind are not built here", hint=HINT
    )


def _check(architecture: Architecture, name: str, value: object) -> None:
    known = architecture.knows(name, value)
    if known is None:
        known = listed().common.knows(name, value)
    if not known:
        raise unbuilt(f"`{name}` {shown(value)}")


def _check_rotary(name: str, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse unknown fields of rotary positions, which some models have for each type of layer."""
    for key, value in scaling.items():
        if isinstance(value, Mapping) and key in config.get("layer_types", _TYPES):
            _check_rotary(f"{name}.{key}", value, {"layer_types": ()})
        elif value is not None and key not in _ROTARY:
            raise unbuilt(f"`{name}.{key}` {shown(value)}")


_TYPES = ("full_attention", "sliding_attention")
