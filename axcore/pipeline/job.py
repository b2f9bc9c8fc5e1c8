"""From what the user typed to a `Job`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..checkpoint import Checkpoint, as_stored, canonical_key, check_layout, read_config
from ..choices import resolve
from ..component import GraphDType, Shape
from ..errors import CheckpointError, UsageError
from ..files import cache_folder
from ..job import Job
from ..language.embedding import FORMATS
from ..model_card import ModelCard, Profile
from ..request import Options

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..plugins import Entry, Registry
    from ..progress import Progress

Weights = Literal["random-tiny", "random-full"]
Source = Literal["huggingface", "modelscope"]

OPSETS = range(16, 21)


@dataclass(frozen=True)
class Request:
    """Everything that a conversion is asked for.

    Attributes:
        model: Id, alias or checkpoint folder.
        checkpoint: Folder or Hugging Face id; None takes the card's repository.
        weights: Fabricate a checkpoint instead of reading one.
        source: Where a repository is fetched from.
        revision: Branch, tag or commit of the repository.
        images: Folders, archives or files with images for calibration.
        calibration_archive: File or URL of an archive of calibration samples, used as it is in
            place of samples made from `images`.
        options: See `Options`.
        verify: Compare the exported graphs with PyTorch.
        vision_only: Leave the language model's side out.
        toolchain: Whose configuration is written.
    """

    model: str
    checkpoint: str | None = None
    weights: Weights | None = None
    source: Source = "huggingface"
    revision: str | None = None
    images: tuple[Path, ...] = ()
    calibration_archive: str | None = None
    options: Options = field(default_factory=Options)
    verify: bool = True
    vision_only: bool = False
    toolchain: str = "pulsar2"


def request_of(bundle: Bundle) -> Request:
    """Return the request that opens the checkpoint of a bundle again, its images aside."""
    manifest = bundle.manifest
    return Request(
        model=manifest["model"]["id"],
        checkpoint=manifest["checkpoint"]["folder"],
        options=bundle.options,
        vision_only=manifest["vision_only"],
        toolchain=manifest["toolchain"],
    )


def open_job(request: Request, registry: Registry, progress: Progress) -> Job:
    """Find the model, get at its checkpoint and resolve the profile.

    Raises:
        PluginNotFound: Nobody knows the model.
        UsageError: The request contradicts itself.
        CheckpointError: The checkpoint is damaged or of another model.
        DownloadError: It could not be fetched.
    """
    _check_options(request)
    entry, folder = _locate(request, registry)
    resolve(f"`{entry.card.id}`", entry.card.choices, request.options.choices)
    task, profile = resolve_profile(entry.card, request.options)
    if folder is None:
        folder = _obtain(request, entry.card, progress)
    layout = entry.card.layout
    only = _vision_key(entry.card) if request.vision_only else None
    checkpoint = Checkpoint.open(folder, layout.prefixes, only=only)
    _check_model(entry.card, checkpoint)
    if layout.tensors is not None:
        expected = _expected(entry.card, checkpoint)
        if only:
            expected = {key: shape for key, shape in expected.items() if only(key)}
        stored = as_stored(checkpoint, expected, layout.text_prefixes)
        check_layout(checkpoint, stored, layout.spare)
    return Job(entry.card, entry.family, checkpoint, task, profile, request.options)


def resolve_profile(card: ModelCard, options: Options) -> tuple[str, Profile]:
    """Return the profile in use, the user's changes applied.

    Raises:
        UsageError: The card has no such task.
    """
    task = options.task or next(iter(card.profiles))
    if task not in card.profiles:
        raise UsageError(
            f"`{card.id}` has no task `{task}`",
            hint=f"choose --task from {', '.join(card.profiles)}",
        )
    names = ("height", "width", "prefill_len", "kv_cache_len", "last_kv_cache_len")
    chosen = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in chosen.items() if value is not None}
    return task, replace(card.profiles[task], **changes)


def _check_options(request: Request) -> None:
    options = request.options
    if request.weights and request.checkpoint:
        raise UsageError(
            f"--weights {request.weights} makes a checkpoint, --checkpoint {request.checkpoint}"
            " names one",
            hint="leave one of them out",
        )
    if request.calibration_archive and request.images:
        raise UsageError(
            f"--calibration-archive {request.calibration_archive} replaces the samples that"
            " --images would make",
            hint="leave one of them out",
        )
    if options.opset not in OPSETS:
        raise UsageError(
            f"opset {options.opset} is not offered", hint=f"choose {OPSETS[0]} to {OPSETS[-1]}"
        )
    if options.dtype not in get_args(GraphDType):
        raise UsageError(
            f"precision {options.dtype} is not offered",
            hint=f"choose --dtype from {', '.join(get_args(GraphDType))}",
        )
    if unknown := sorted(set(options.embedding_formats) - FORMATS.keys()):
        raise UsageError(
            f"there is no embedding format `{unknown[0]}`",
            hint=f"choose --embedding-format from {', '.join(FORMATS)}",
        )


def _locate(request: Request, registry: Registry) -> tuple[Entry, Path | None]:
    """Return the model and the checkpoint folder, where the request names one."""
    folder = Path(request.model).expanduser()
    if folder.is_dir():
        if request.checkpoint or request.weights:
            raise UsageError(
                f"{folder} is a checkpoint folder already",
                hint="name the model by its id to use --checkpoint or --weights",
            )
        config = read_config(folder)
        _architectures(config, folder)
        return registry.recognise(config, folder / "config.json"), folder
    entry = registry.find(request.model)
    named = Path(request.checkpoint).expanduser() if request.checkpoint else None
    if named is not None and named.is_dir():
        return entry, named
    if named is not None and not _looks_like_repository(request.checkpoint or ""):
        raise CheckpointError(
            f"no checkpoint folder {named}", hint="give a folder or a Hugging Face id (owner/name)"
        )
    return entry, None


def _obtain(request: Request, card: ModelCard, progress: Progress) -> Path:
    if request.weights:
        from ..checkpoint.fabricate import fabricate

        size: Literal["tiny", "full"] = "tiny" if request.weights == "random-tiny" else "full"
        return fabricate(card, size, fabricated_folder(card, size), progress=progress)
    from ..checkpoint.hub import fetch

    return fetch(
        request.checkpoint or card.repo,
        needed=_disk_key(card) if request.vision_only else None,
        source=request.source,
        revision=request.revision,
        progress=progress,
    )


def fabricated_folder(card: ModelCard, size: str) -> Path:
    """Return where a fabricated checkpoint is kept."""
    return cache_folder("fabricated") / f"{card.id}-{size}"


def _vision_key(card: ModelCard) -> Callable[[str], bool]:
    return lambda key: not key.startswith(card.layout.text_prefixes)


def _disk_key(card: ModelCard) -> Callable[[str], bool]:
    return lambda key: _vision_key(card)(canonical_key(key, card.layout.prefixes))


def _check_model(card: ModelCard, checkpoint: Checkpoint) -> None:
    where = checkpoint.folder / "config.json"
    hint = "name the checkpoint folder alone to let axcore recognise the model"
    found = _architectures(checkpoint.config, checkpoint.folder)
    if not set(found) & set(card.architectures):
        raise CheckpointError(
            f"{where} describes {', '.join(found) or 'no architecture'}"
            f"\n  `{card.id}` is {', '.join(card.architectures)}",
            hint=hint,
        )
    if card.recognises is not None and not card.recognises(checkpoint.config):
        raise CheckpointError(
            f"{where} describes another {', '.join(found)} than `{card.id}`", hint=hint
        )


def _architectures(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what a config says of its architecture, which must be a list of names."""
    found = config.get("architectures") or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(
            f"`architectures` is {found!r}, not a list of names\n  file: {folder / 'config.json'}",
            hint="fetch config.json again",
        )
    return found


def _expected(card: ModelCard, checkpoint: Checkpoint) -> Mapping[str, Shape]:
    assert card.layout.tensors is not None
    try:
        return card.layout.tensors(checkpoint.config)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} does not describe a `{card.id}`"
            f"\n  {type(error).__name__}: {error}",
            hint="fetch config.json again, or name the model it belongs to",
        ) from error


def _looks_like_repository(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "~", "/"))
