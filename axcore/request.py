"""The arguments of a conversion, declared once.

The arguments of the Python verbs, the options of the command line, the manifest and
``docs/options.md`` are made from the fields below: to add an option, add a field and use it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from .component import GraphDType
from .errors import UsageError
from .paths import given_path
from .plain import parse

T = TypeVar("T")
R = TypeVar("R", bound="CheckpointRequest")
V = TypeVar("V", bound=Callable[..., Any])
Weights = Literal["random-tiny", "random-full"]
Source = Literal["huggingface", "modelscope"]
OPSETS = range(16, 21)


def _option(default: Any, help: str, *, flag: str = "") -> Any:  # noqa: A002 - as typer calls it
    """Declare a field.

    Args:
        default: Its value where none is given.
        help: What it means, for documentation, ``--help`` and docstrings.
        flag: Its name on the command line, where that is not ``--<field-name>``.
    """
    return field(default=default, metadata={"help": help, "flag": flag})


def _documented(cls: type[T]) -> type[T]:
    """Add the fields and their help to the docstring of a dataclass."""
    lines = [f"    {item.name}: {item.metadata['help']}" for item in fields(cls) if item.metadata]  # type: ignore[arg-type]
    cls.__doc__ = "\n".join([str(cls.__doc__).rstrip(), "", "Attributes:", *lines])
    return cls


@_documented
@dataclass(frozen=True, kw_only=True)
class CheckpointRequest:
    """A model, and where its checkpoint comes from."""

    model: str = field(
        kw_only=False, metadata={"help": "Model id, alias, repository or checkpoint folder."}
    )
    family: str | None = _option(
        None, "Plugin that the model is of, where several have it (see `axcore plugins list`)."
    )
    checkpoint: str | None = _option(
        None, "Checkpoint folder or Hugging Face id; default: the model's own."
    )
    weights: Weights | None = _option(
        None, "Fabricate a checkpoint with random weights: tiny, or of the real size."
    )
    source: Source = _option("huggingface", "Where to download from.")
    revision: str | None = _option(None, "Branch, tag or commit to download.")

    @classmethod
    def of(cls: type[R], model: str | Path | R, **arguments: Any) -> R:
        """Return a request from user input, validated and converted to the declared types.

        Args:
            model: What `model` takes, or a request whose fields hold where no argument is given.
            arguments: Further fields by name. A path may be a string, and a field that takes
                several values takes one as well.

        Raises:
            UsageError: There is no such field, or it does not take the value.
        """
        known = [item.name for item in fields(cls)]
        _check_texts({"model": model, **arguments})
        if unknown := sorted(arguments.keys() - set(known)):
            raise UsageError(
                f"there is no argument `{unknown[0]}`", hint=f"choose from {', '.join(known)}"
            )
        given = vars(model) if isinstance(model, cls) else {"model": model}
        values = {
            name: _COERCED[name](value) if name in _COERCED else value
            for name, value in {**given, **arguments}.items()
        }
        try:
            return parse(cls, values)
        except ValueError as error:
            name = re.split(r"\W", str(error))[0]
            about = cls.__dataclass_fields__[name].metadata.get("help", "")
            raise UsageError(f"an argument is wrong: {error}", hint=f"{name}: {about}") from error


@_documented
@dataclass(frozen=True, kw_only=True)
class Options:
    """What hooks see of a request; None means "as the profile says"."""

    task: str | None = _option(None, "Profile, e.g. image or video (see `axcore show`).")
    height: int | None = _option(None, "Image height in px.")
    width: int | None = _option(None, "Image width in px.")
    dtype: GraphDType = _option(
        "float32", "Precision of the vision graphs, inputs and outputs included."
    )
    opset: int = _option(
        17, f"ONNX operator set of the vision graphs, {OPSETS[0]} to {OPSETS[-1]}."
    )
    split: int | Literal["auto"] | None = _option(
        None, "Files per vision graph: a number, or auto for below 2 GB each."
    )
    lengths: Literal["default", "published"] = _option(
        "default",
        "Lengths of the language model: the plugin's, which every runtime takes, or those of the"
        " published build.",
    )
    names: Literal["default", "published"] = _option(
        "default",
        "Names of the vision graphs: the plugin's, or those that the published scripts open.",
    )
    prefill_len: int | None = _option(None, "Tokens of one prefill chunk.")
    kv_cache_len: int | None = _option(None, "Slots of the key/value cache.")
    last_kv_cache_len: tuple[int, ...] | None = _option(
        None, "History length of a further prefill group; repeatable."
    )
    embedding_formats: tuple[str, ...] = _option(
        (),
        "Further embedding files, separated by commas: npy, f32bin, pth.",
        flag="--embedding-format",
    )
    choices: Mapping[str, str] = field(default_factory=dict)
    """Options of the model alone, by name (see `ModelCard.choices`)."""

    @property
    def itemsize(self) -> int:
        """Bytes of one value in the vision graphs."""
        return 4 if self.dtype == "float32" else 2


@_documented
@dataclass(frozen=True, kw_only=True)
class Request(Options, CheckpointRequest):
    """Everything that a conversion is asked for."""

    images: tuple[Path, ...] = _option(
        (), "Calibration images: folder, archive or file; repeatable."
    )
    calibration_archive: str | None = _option(
        None, "File or URL of an archive of finished calibration samples, used as it is."
    )
    verify: bool = _option(True, "Compare the graphs with PyTorch.")
    lint: bool = _option(True, "Check the graphs against the target's operator table.")
    vision_only: bool = _option(False, "Leave the language model's side out.")
    copy_code: bool = _option(
        False,
        "Copy the checkpoint's Python files, which published scripts let transformers run; axcore"
        " never does.",
    )
    toolchain: str = _option("pulsar2", "Whose configuration is written.")

    @classmethod
    def of(cls, model: Any, *, options: Options | None = None, **arguments: Any) -> Request:
        """Return a request from what a user gave; see `CheckpointRequest.of`.

        Args:
            model: What `model` takes, or a request whose fields hold where no argument is given.
            options: Several fields at once; an argument beside it wins.
            arguments: Further fields by name. Names without a field are options of the model or
                of the toolchain, such as ``chip``, with an underscore for every hyphen; they join
                `choices`.

        Raises:
            UsageError: A field does not take the value.
        """
        if not isinstance(options, (Options, type(None))):
            raise UsageError(
                f"options: {options!r} is not an axcore.Options",
                hint="give the fields themselves, e.g. height=448, or an axcore.Options of them",
            )
        known = {item.name for item in fields(cls)}
        others = {
            name.replace("_", "-"): _as_text(value)
            for name, value in arguments.items()
            if name not in known
        }
        given = {**(vars(options) if options else {})}
        given |= {name: value for name, value in arguments.items() if name in known}
        if others:
            before = given.get("choices", model.choices if isinstance(model, cls) else {})
            given["choices"] = {**before, **others} if isinstance(before, Mapping) else before
        return super().of(model, **given)

    @property
    def options(self) -> Options:
        """The part that hooks see."""
        return Options(**{item.name: getattr(self, item.name) for item in fields(Options)})


def takes(request: type[CheckpointRequest]) -> Callable[[V], V]:
    """Give a verb with ``**arguments`` the signature that spells out the fields of `request`."""

    def decorate(verb: V) -> V:
        signature = inspect.signature(verb)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        spelt = [
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=item.default,
                annotation=item.type,
            )
            for item in fields(request)
            if item.metadata and item.name != "model"
        ]
        verb.__signature__ = signature.replace(parameters=[*own, *spelt])  # type: ignore[attr-defined]
        return verb

    return decorate


def _check_texts(given: Mapping[str, Any]) -> None:
    """Refuse texts that are empty, as of a variable that is not set, or that no file can have."""
    for name, value in given.items():
        if isinstance(value, str) and (not value or "\0" in value):
            raise UsageError(
                f"an argument is wrong: {name}: {value!r} is no value",
                hint=f"{name}: leave it out, or give it a value; is a variable empty?",
            )


def _paths(value: Any) -> Any:
    """Return what `_several` does, with paths as `given_path` reads them."""
    several = [] if value is None else _several(value)
    if not isinstance(several, list):
        return several
    return [given_path(path) if isinstance(path, (str, Path)) else path for path in several]


def _several(value: Any) -> Any:
    """Return a list where one value may be given alone; what is neither stays, to be refused."""
    if isinstance(value, (str, Path, int)):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)):
        return list(value)
    return value


def _listed(value: Any) -> Any:
    """Return a list as `_several` does, in which text is split at commas."""
    if not isinstance(values := _several(value), list):
        return values
    split = [part.split(",") if isinstance(part, str) else [part] for part in values]
    return [part.strip() if isinstance(part, str) else part for parts in split for part in parts]


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _number_or_text(value: Any) -> Any:
    # Of more digits, no number would make sense, and Python refuses to read it.
    digits = isinstance(value, str) and value.isdecimal() and len(value) < _MOST_DIGITS
    return int(value) if digits else value


_MOST_DIGITS = 100


def _as_text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


_COERCED: Mapping[str, Callable[[Any], Any]] = {
    "model": _text,
    "checkpoint": _text,
    "calibration_archive": _text,
    "images": _paths,
    "embedding_formats": lambda value: [] if value is None else _listed(value),
    "last_kv_cache_len": _listed,
    "split": _number_or_text,
}
