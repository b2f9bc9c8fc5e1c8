"""From a request to a `Job`: the model, its options, its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..catalogue import recognises
from ..checkpoint import Checkpoint, as_stored, canonical_key, check_layout, read_config
from ..checkpoint.quantised import check_groups
from ..choices import resolve, unknown_option
from ..errors import CheckpointError, DownloadError, UsageError
from ..files import cache_folder
from ..job import Job
from ..language.embedding import FORMATS
from ..model_card import ModelCard, Profile
from ..model_config import check_config
from ..paths import expanded
from ..plain import shown
from ..request import OPSETS, CheckpointRequest, Options, Request

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..model_card import Entry
    from ..plugins import Registry
    from ..progress import Progress
    from ..toolchains.contract import Target, Toolchain


@dataclass(frozen=True)
class Chosen:
    """The options of a request, divided between model and toolchain.

    Attributes:
        model: The model's options that were given.
        toolchain: Whose configuration is written.
        options: All of its options that were given or have a default.
        target: The device that is built for.
    """

    model: Mapping[str, str]
    toolchain: Toolchain
    options: Mapping[str, str]
    target: Target


def find_toolchain(registry: Registry, name: str) -> Toolchain:
    """Return the toolchain of that name.

    Raises:
        UsageError: None is installed; the hint lists those that are.
    """
    if name not in registry.toolchains:
        installed = ", ".join(registry.toolchains) or "none"
        raise UsageError(f"no toolchain `{name}`", hint=f"installed: {installed}")
    return registry.toolchains[name]


def choose(request: Request, card: ModelCard, registry: Registry) -> Chosen:
    """Divide the options of a request between the model and the toolchain, as they declare them.

    Raises:
        UsageError: Neither has such an option, an option does not take the value, or the toolchain
            has no such target.
    """
    toolchain, given = find_toolchain(registry, request.toolchain), request.choices
    owner = f"`{card.id}` with toolchain `{toolchain.name}`"
    declared = {**card.choices, **toolchain.options}
    for name in given.keys() - declared.keys():
        spelt = (item.name.replace("_", "-") for item in fields(Request))
        raise unknown_option(owner, declared, name, spelt)
    resolved = resolve(owner, declared, given)
    if both := sorted(given.keys() & card.choices.keys() & toolchain.options.keys()):
        raise UsageError(
            f"--{both[0]} is an option of `{card.id}` and of toolchain `{toolchain.name}`",
            hint="leave it out: either takes its default",
        )
    options = {name: resolved[name] for name in toolchain.options if name in resolved}
    model = {name: given[name] for name in given if name in card.choices}
    return Chosen(model, toolchain, options, toolchain.target(options))


def request_of(bundle: Bundle, registry: Registry) -> Request:
    """Return the request that opens the checkpoint of a bundle again, its images aside.

    Raises:
        PluginNotFound: The plugin that made the bundle is not in use.
    """
    manifest, options = bundle.manifest, bundle.options
    return Request.of(
        manifest.model.id,
        family=registry.of_bundle(manifest.model).family,
        options=replace(options, choices={**options.choices, **bundle.build_request.options}),
        checkpoint=manifest.checkpoint.folder,
        vision_only=manifest.vision_only,
        toolchain=manifest.toolchain,
    )


def open_job(request: Request, registry: Registry, progress: Progress) -> Job:
    """Find the model, resolve options and profile, and open the checkpoint.

    Raises:
        PluginNotFound: No installed plugin knows the model.
        UsageError: The request contradicts itself, or several families have the model.
        ContractError: The family failed.
        CheckpointError: The checkpoint is damaged or of another model.
        DownloadError: It could not be fetched.
    """
    _check_options(request)
    entry, folder = _locate(request, registry, progress)
    card, chosen = entry.card, choose(request, entry.card, registry)
    options = replace(request.options, choices=chosen.model)
    task, profile = resolve_profile(card, options)
    if folder is None:
        folder = _obtain(request, card, vision_only=request.vision_only, progress=progress)
    checkpoint = _open(folder, entry, registry, vision_only=request.vision_only)
    return Job(card, entry.family, checkpoint, task, profile, options, chosen.target.name)


def _open(folder: Path, entry: Entry, registry: Registry, *, vision_only: bool) -> Checkpoint:
    """Open a checkpoint whose config and tensors are those of the model."""
    card = entry.card
    layout, wanted = card.layout, vision_key(card) if vision_only else None
    checkpoint = Checkpoint.open(folder, layout.prefixes, only=wanted)
    _check_architecture(card, checkpoint)
    with registry.blame(entry.family, "model_cards"):
        own = recognises(card, checkpoint.config)
    if not own:
        raise _another(card, checkpoint)
    with _described(card, checkpoint):
        check_config(checkpoint.config, layout.config)
    if layout.tensors is not None:
        with _described(card, checkpoint):
            expected = layout.tensors(checkpoint.config)
        if wanted:
            expected = {key: shape for key, shape in expected.items() if wanted(key)}
        stored = as_stored(checkpoint, expected, layout.text_prefixes)
        check_layout(checkpoint, stored, layout.spare)
        check_groups(checkpoint)
    return checkpoint


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
    profile = card.profiles[task]
    if options.lengths == "published" and profile.published:
        profile = replace(profile, **vars(profile.published))
    names = ("height", "width", "prefill_len", "kv_cache_len", "last_kv_cache_len")
    chosen = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in chosen.items() if value is not None}
    if (chunk := options.prefill_len) and options.last_kv_cache_len is None:
        # Those of the profile that fit neither another chunk nor another cache are left out.
        slots = options.kv_cache_len or profile.kv_cache_len
        changes["last_kv_cache_len"] = tuple(
            history
            for history in profile.last_kv_cache_len
            if history % chunk == 0 and history + chunk <= slots
        )
    return task, replace(profile, **changes)


def _check_options(request: Request) -> None:
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
    if request.opset not in OPSETS:
        raise UsageError(
            f"opset {request.opset} is not offered", hint=f"choose {OPSETS[0]} to {OPSETS[-1]}"
        )
    if isinstance(request.split, int) and request.split < 1:
        raise UsageError(
            f"--split {request.split} is not a number of files", hint="choose 1 or more"
        )
    if unknown := sorted(set(request.embedding_formats) - FORMATS.keys()):
        raise UsageError(
            f"there is no embedding format `{unknown[0]}`",
            hint=f"choose --embedding-format from {', '.join(FORMATS)}",
        )


def _locate(
    request: CheckpointRequest, registry: Registry, progress: Progress
) -> tuple[Entry, Path | None]:
    """Return the model and the checkpoint folder, where the request names one."""
    folder = expanded(request.model)
    if _is_folder(folder):
        if request.checkpoint or request.weights:
            raise UsageError(
                f"{folder} is a checkpoint folder already",
                hint="name the model by its id to use --checkpoint or --weights",
            )
        config = read_config(folder)
        _architectures(config, folder)
        where = folder / "config.json"
        return registry.recognise(config, where, request.family, progress.warn), folder
    entry = registry.find(request.model, request.family)
    named = expanded(request.checkpoint) if request.checkpoint else None
    if named is not None and _is_folder(named):
        return entry, named
    if named is not None and not _looks_like_repository(request.checkpoint or ""):
        raise CheckpointError(
            f"no checkpoint folder {named}", hint="give a folder or a Hugging Face id (owner/name)"
        )
    return entry, None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long, or a folder that may not be entered
        return False


def _obtain(
    request: CheckpointRequest, card: ModelCard, *, vision_only: bool, progress: Progress
) -> Path:
    if request.weights:
        from ..checkpoint.fabricate import fabricate

        size: Literal["tiny", "full"] = "tiny" if request.weights == "random-tiny" else "full"
        return fabricate(card, size, fabricated_folder(card, size), progress=progress)
    from ..checkpoint.hub import fetch

    try:
        return fetch(
            request.checkpoint or card.repo,
            needed=_disk_key(card) if vision_only else None,
            source=request.source,
            revision=request.revision,
            progress=progress,
        )
    except DownloadError as error:
        if card.layout.tensors and card.published.config:
            error.hint += "; or try the model without its weights: `--weights random-full`"
        raise


def fabricated_folder(card: ModelCard, size: str) -> Path:
    """Return where a fabricated checkpoint is kept."""
    return cache_folder("fabricated") / f"{card.id}-{size}"


def vision_key(card: ModelCard) -> Callable[[str], bool]:
    """Return what says whether a canonical key is of the vision side."""
    return lambda key: not key.startswith(card.layout.text_prefixes)


def _disk_key(card: ModelCard) -> Callable[[str], bool]:
    return lambda key: vision_key(card)(canonical_key(key, card.layout.prefixes))


_HINT = "name the checkpoint folder alone to let axcore recognise the model"


def _check_architecture(card: ModelCard, checkpoint: Checkpoint) -> None:
    where = checkpoint.folder / "config.json"
    found = _architectures(checkpoint.config, checkpoint.folder)
    if not set(found) & set(card.architectures):
        raise CheckpointError(
            f"{where} describes {', '.join(found) or 'no architecture'}"
            f"\n  `{card.id}` is {', '.join(card.architectures)}",
            hint=_HINT,
        )


def _another(card: ModelCard, checkpoint: Checkpoint) -> CheckpointError:
    found = ", ".join(_architectures(checkpoint.config, checkpoint.folder))
    where = checkpoint.folder / "config.json"
    return CheckpointError(f"{where} describes another {found} than `{card.id}`", hint=_HINT)


def _architectures(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what a config says of its architecture, which must be a list of names."""
    found = config.get("architectures") or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(
            f"`architectures` is {shown(found)}, not a list of names\n"
            f"  file: {folder / 'config.json'}",
            hint="fetch config.json again",
        )
    return found


@contextmanager
def _described(card: ModelCard, checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        fact = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} does not describe a `{card.id}`\n  {fact}",
            hint="fetch config.json again, or name the model it belongs to",
        ) from error


def _looks_like_repository(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "~", "/"))
